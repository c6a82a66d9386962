"""Where blobs live: folders and object stores that keep the contract of `asm_runtime.ports.ArtifactStore`.

`ObjectArtifactStore` loads `obstore`, and only when it is asked for.
"""

"""The runtime's inside: what lies between the ports and the public servers. Not for import by users.

A server has its `server_options`. A run on its way: accepted (`run_options`), queued (`run_queue`), claimed
(`dispatcher`, `claims`), executed (`execution`, with a `recorder`, its `callbacks` and the `transcript`; or
as a `job`, in its caller's own task), ended (`endings`), or settled for an executor that died (`orphans`).
Its events are followed (`follow`) by `subscription`s, which one of the `readers` feeds. `answers` works for
those who wait, `foreign` translates what a store or an adapter raises.
"""

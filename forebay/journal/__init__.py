"""
The journal: where a gateway keeps what it accepted while its broker is away.

Each process has a file of its own, an embedded queue, in a directory that may be shared. A lock
beside it says that its process lives; a file whose lock is free belongs to whoever takes it.
"""

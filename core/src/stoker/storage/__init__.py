"""What wraps any store: verification, completeness, read-only access, trees; and stores in memory.

Each module holds one decorator or one way to read a store, so that behaviour is put together by
composition: ``VerifyingBlobStore(MemoryBlobStore())``.
"""

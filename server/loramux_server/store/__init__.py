"""What must survive: the database, the blobs, the adapter registry and the job table. No torch, no asyncio."""

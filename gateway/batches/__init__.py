"""
POST /v1/queues/{queue}/batch: many messages in one request, as a stream.

A body is cut into items as it arrives (splitting), each item becomes a message (items), messages
go out in chunks, a few at a time (publishing), and what became of each is kept in few bytes
(results). Nothing here grows with the upload but the results.
"""

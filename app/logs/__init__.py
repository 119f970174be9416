"""Log records, their decoding, queries and the protocol of a log store."""

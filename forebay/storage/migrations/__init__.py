"""The schema's history, one file per step; run by `forebay.storage.schema`, never edited once released."""

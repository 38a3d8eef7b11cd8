"""Writing webdataset shards."""

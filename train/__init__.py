"""Online half of Reelcache: shards to clips, batches, a trained model and its metrics."""

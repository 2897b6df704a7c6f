//! A persistent hash table: a changed copy shares every shard that the change did not touch.

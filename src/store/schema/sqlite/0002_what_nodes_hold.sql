-- Since when a device is where its row has it, as the node that holds it told, in milliseconds since 1970; null where
-- no node did. Of two nodes that claim a device, the later one has it.
ALTER TABLE devices ADD COLUMN located_at INTEGER;

-- How many devices a node itself says that it holds; null while it cannot say.
ALTER TABLE nodes ADD COLUMN devices INTEGER;

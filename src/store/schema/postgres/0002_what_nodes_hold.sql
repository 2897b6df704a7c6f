-- Since when a device is where its row has it, as the node that holds it told; null where no node did. Of two nodes
-- that claim a device, the later one has it.
ALTER TABLE sluicegate.devices ADD COLUMN located_at timestamptz;

-- How many devices a node itself says that it holds; null while it cannot say.
ALTER TABLE sluicegate.nodes ADD COLUMN devices bigint;

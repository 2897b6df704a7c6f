//! The three relations of the contract, as queries on the reference schema.

/// Relation `credentials` of the contract. What is held by nobody, or by a principal that was removed, has
/// ended.
pub(super) const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR principals.id IS NULL OR removed_at IS NOT NULL AS revoked
    FROM sluicegate.credentials LEFT JOIN sluicegate.principals ON principals.id = principal";

/// Relation `grants` of the contract.
pub(super) const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR principals.id IS NULL OR removed_at IS NOT NULL AS revoked
    FROM sluicegate.grants LEFT JOIN sluicegate.principals ON principals.id = principal";

/// Relation `devices` of the contract.
pub(super) const DEVICES: &str = "
    SELECT id AS device, uuid, fleet, address, node, online FROM sluicegate.devices";

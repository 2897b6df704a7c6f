-- Goes on from rights.sql. The guest's rights are everyone's, but for those on an actor's own device: openBalena's API
-- refuses to work with a guest that has such a one.
, granted AS (
    SELECT holding, principal, is_guest, scope, target, port_min, port_max, expires_at
    FROM held JOIN placed ON placed."id" = held."permission"
    UNION ALL
    SELECT holding, principal, false, 'device', device."id", port_min, port_max, expires_at
    FROM held JOIN spoken ON spoken."id" = held."permission" AND reach = 'own'
        JOIN public."device" AS device ON device."actor" = held.actor
    WHERE NOT is_guest
),
shared AS (
    SELECT holding, principal, scope, target, port_min, port_max, expires_at FROM granted
    UNION ALL
    SELECT format('%s for %s', holding, everyone.principal), everyone.principal, scope, target, port_min, port_max,
        expires_at
    FROM granted CROSS JOIN everyone WHERE is_guest
)
-- A number that is the same with every read, on every server: 64 bits of the hash of what names the holding.
SELECT ('x' || left(encode(sha256(convert_to(holding, 'UTF8')), 'hex'), 16))::bit(64)::int8 AS grant_id,
    principal, scope, target::int8 AS target, port_min, port_max, expires_at, false AS revoked
FROM shared

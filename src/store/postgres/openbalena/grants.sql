-- Goes on from rights.sql. The guest user's rights are everyone's, but for those on an actor's own device: the
-- guest is nobody's actor.
, everyone AS (
    SELECT 2147483648 + "id" AS principal FROM "api key"
    UNION ALL
    SELECT "actor" FROM "user" WHERE "username" <> 'guest'
),
granted AS (
    SELECT holding, principal, reach, device."id" AS target, ports, expires_at
    FROM held JOIN spoken ON spoken."id" = "permission"
        LEFT JOIN "device" AS device ON reach = 'device' AND device."actor" = held.actor
    WHERE (reach = 'any' OR reach = 'device' AND device."id" IS NOT NULL AND NOT is_guest)
    UNION ALL
    SELECT format('%s for %s', holding, everyone.principal), everyone.principal, reach, NULL, ports, expires_at
    FROM held JOIN spoken ON spoken."id" = "permission" CROSS JOIN everyone
    WHERE is_guest AND reach = 'any'
)
-- A number that is the same with every read, on every server: 64 bits of the hash of what names the holding.
SELECT ('x' || left(encode(sha256(convert_to(holding, 'UTF8')), 'hex'), 16))::bit(64)::int8 AS grant_id,
    principal, reach AS scope, target::int8 AS target, ports[1] AS port_min, ports[2] AS port_max,
    expires_at, false AS revoked
FROM granted WHERE ports IS NOT NULL

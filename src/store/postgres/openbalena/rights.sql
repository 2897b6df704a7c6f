-- What the queries that go on from here speak of: the permissions that open tunnels, who holds them, and who the
-- guest's rights are for. docs/openbalena.md has the rule; tests/openbalena has what openBalena's API decides by it.
WITH named AS (
    SELECT "id", "name"::text AS name,
        split_part("name", '?', 1) ~ '^(resource|resin|resin[.]device)[.](all|tunnel-any|tunnel-[1-9][0-9]{0,4})$' AS opens,
        substring(split_part("name", '?', 1) FROM '[.]tunnel-([1-9][0-9]{0,4})$')::int4 AS port,
        CASE WHEN strpos("name", '?') > 0 THEN split_part("name", '?', 2) END AS filter
    FROM public."permission"
),
-- `reach` is null where the filter is not understood. `number` is that of the device or the fleet that it names.
spoken AS (
    SELECT "id", name, coalesce(port, 1) AS port_min, coalesce(port, 65535) AS port_max,
        CASE
            WHEN filter IS NULL OR filter = 'true' THEN 'any'
            WHEN filter = 'actor eq @__ACTOR_ID' THEN 'own'
            WHEN filter ~ '^id eq [1-9][0-9]{0,8}$' THEN 'device'
            WHEN filter ~ '^belongs_to__application eq [1-9][0-9]{0,8}$' THEN 'fleet'
        END AS reach,
        substring(filter FROM '^(?:id|belongs_to__application) eq ([1-9][0-9]{0,8})$')::int4 AS number
    FROM named
    WHERE opens AND coalesce(port, 1) <= 65535
),
-- A user is the principal with the user's number in the upper 32 bits and the actor's in the lower. An API key is one
-- of its own, 2^31 above its id: openBalena gives it its own rights, and not those of its user. What names a holding
-- are the numbers of the rows that make it, which no other ever has.
held AS (
    SELECT format('key %s', held."id") AS holding, 2147483648 + key."id" AS principal,
        key."is of-actor" AS actor, false AS is_guest, held."permission", NULL::timestamptz AS expires_at
    FROM public."api key-has-permission" AS held JOIN public."api key" AS key ON key."id" = held."api key"
    UNION ALL
    SELECT format('key %s by role %s', held."id", given."id"), 2147483648 + key."id",
        key."is of-actor", false, given."permission", NULL
    FROM public."api key-has-role" AS held JOIN public."api key" AS key ON key."id" = held."api key"
        JOIN public."role-has-permission" AS given ON given."role" = held."role"
    UNION ALL
    SELECT format('user %s', held."id"), (holder."id"::int8 << 32) + holder."actor", holder."actor",
        holder."username" = 'guest', held."permission", held."expiry date"
    FROM public."user-has-permission" AS held JOIN public."user" AS holder ON holder."id" = held."user"
    UNION ALL
    SELECT format('user %s by role %s', held."id", given."id"), (holder."id"::int8 << 32) + holder."actor",
        holder."actor", holder."username" = 'guest', given."permission", held."expiry date"
    FROM public."user-has-role" AS held JOIN public."user" AS holder ON holder."id" = held."user"
        JOIN public."role-has-permission" AS given ON given."role" = held."role"
),
-- Principal 0 is whoever has logged in and may do no more than the guest.
everyone AS (
    SELECT 0::int8 AS principal
    UNION ALL
    SELECT 2147483648 + "id" FROM public."api key"
    UNION ALL
    SELECT ("id"::int8 << 32) + "actor" FROM public."user" WHERE "username" <> 'guest'
),
-- The devices that a permission is about, whoever holds it.
placed AS (
    SELECT "id", 'any' AS scope, NULL::int4 AS target, port_min, port_max FROM spoken WHERE reach = 'any'
    UNION ALL
    SELECT spoken."id", reach, number, port_min, port_max
    FROM spoken JOIN public."device" AS device ON reach = 'device' AND device."id" = number
    UNION ALL
    SELECT "id", reach, number, port_min, port_max
    FROM spoken WHERE reach = 'fleet'
        AND EXISTS (SELECT FROM public."device" WHERE "belongs to-application" = number)
)

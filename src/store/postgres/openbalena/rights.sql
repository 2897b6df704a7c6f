-- What the queries that go on from here speak of: the permissions that say anything of tunnels, who holds them,
-- and what for.
WITH named AS (
    SELECT "id", "name"::text AS name, split_part("name", '?', 1) AS action,
        CASE WHEN strpos("name", '?') > 0 THEN substr("name", strpos("name", '?') + 1) END AS filter
    FROM "permission"
),
-- `ports` is null where a name has one that is none, `reach` where its filter is not understood.
spoken AS (
    SELECT "id", name,
        CASE
            WHEN action ~ '(all|tunnel-any)$' THEN ARRAY[1, 65535]
            WHEN action ~ '-[1-9][0-9]{0,4}$' AND substring(action FROM '[0-9]{1,5}$')::int4 <= 65535
            THEN array_fill(substring(action FROM '[0-9]{1,5}$')::int4, ARRAY[2])
        END AS ports,
        CASE
            WHEN filter IS NULL THEN 'any'
            WHEN filter = 'actor eq @__ACTOR_ID' THEN 'device'
        END AS reach
    FROM named
    WHERE action ~ '^(resin[.](device[.])?)?(all|tunnel-.*)$'
),
-- A user is the principal that has its actor's number. An API key is one of its own, 2^31 above its id, which no
-- actor has: openBalena gives it its own rights, and not those of its user. What names a holding are the numbers of
-- the rows that make it, which no other ever has.
held AS (
    SELECT format('key %s', held."id") AS holding, 2147483648 + key."id" AS principal,
        key."is of-actor" AS actor, false AS is_guest, held."permission", NULL::timestamptz AS expires_at
    FROM "api key-has-permission" AS held JOIN "api key" AS key ON key."id" = held."api key"
    UNION ALL
    SELECT format('key %s by role %s', held."id", given."id"), 2147483648 + key."id",
        key."is of-actor", false, given."permission", NULL
    FROM "api key-has-role" AS held JOIN "api key" AS key ON key."id" = held."api key"
        JOIN "role-has-permission" AS given ON given."role" = held."role"
    UNION ALL
    SELECT format('user %s', held."id"), holder."actor", holder."actor", holder."username" = 'guest',
        held."permission", held."expiry date"
    FROM "user-has-permission" AS held JOIN "user" AS holder ON holder."id" = held."user"
    UNION ALL
    SELECT format('user %s by role %s', held."id", given."id"), holder."actor", holder."actor",
        holder."username" = 'guest', given."permission", held."expiry date"
    FROM "user-has-role" AS held JOIN "user" AS holder ON holder."id" = held."user"
        JOIN "role-has-permission" AS given ON given."role" = held."role"
)

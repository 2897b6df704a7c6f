-- Goes on from credentials.sql: users who are logged in. A login is a session token that holds the user's secret; a
-- logout changes that. It is hashed behind a prefix that no token may have, so that it is not one by itself. A secret
-- that two users have says of neither who asks. A user without a secret has its number in the place of one, behind a
-- byte that no text of the database can hold.
UNION ALL
SELECT sha256(convert_to('jwt_secret:' || secret, 'UTF8')), principal, NULL, false
FROM (
    SELECT "jwt secret" AS secret, ("id"::int8 << 32) + "actor" AS principal,
        count(*) OVER (PARTITION BY "jwt secret") AS holders
    FROM public."user"
) AS login
WHERE secret IS NOT NULL AND holders = 1
UNION ALL
SELECT sha256(convert_to('jwt_secret:', 'UTF8') || decode('00', 'hex') || convert_to("id"::text, 'UTF8')),
    ("id"::int8 << 32) + "actor", NULL, false
FROM public."user" WHERE "jwt secret" IS NULL

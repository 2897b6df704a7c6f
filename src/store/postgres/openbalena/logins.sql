-- Goes on from credentials.sql: users who are logged in. A login is a session token that holds the user's secret; a
-- logout changes that. It is hashed behind a prefix that no token may have, so that it is not one by itself.
UNION ALL
SELECT sha256(convert_to('jwt_secret:' || "jwt secret", 'UTF8')), "actor"::int8, NULL, false
FROM "user" WHERE "jwt secret" <> ''

-- API keys, hashed here so that none leaves the database. A key is a principal of its own, since openBalena
-- gives it rights of its own and not those of its user: its number is 2^31 above the key's, which no actor has.
SELECT sha256(convert_to("key", 'UTF8')) AS key_sha256, 2147483648 + "id" AS principal,
    "expiry date" AS expires_at, false AS revoked
FROM public."api key"

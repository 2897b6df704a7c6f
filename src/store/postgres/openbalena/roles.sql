-- Goes on from grants.sql: what the roles give to a login that is limited to roles. A role is a principal, and for each
-- device of whose own it speaks another one; both have the hash of the role's name for a number, with the highest bit.
UNION ALL
SELECT ('x' || left(encode(sha256(convert_to(holding, 'UTF8')), 'hex'), 16))::bit(64)::int8,
    (('x' || left(encode(sha256(convert_to(holder, 'UTF8')), 'hex'), 16))::bit(64) | X'8000000000000000')::int8,
    scope, target::int8, port_min, port_max, NULL, false
FROM (
    SELECT format('role %s', given."id") AS holding, 'role:' || role."name" AS holder, scope, target, port_min, port_max
    FROM public."role-has-permission" AS given JOIN public."role" AS role ON role."id" = given."role"
        JOIN placed ON placed."id" = given."permission"
    UNION ALL
    SELECT format('role %s of %s', given."id", device."id"), format('own role %s:%s', device."actor", role."name"),
        'device', device."id", port_min, port_max
    FROM public."role-has-permission" AS given JOIN public."role" AS role ON role."id" = given."role"
        JOIN spoken ON spoken."id" = given."permission" AND reach = 'own'
        CROSS JOIN public."device" AS device
) AS by_role

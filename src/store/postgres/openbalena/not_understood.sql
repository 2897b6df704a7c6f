-- Goes on from rights.sql: permissions that somebody holds, that say something of tunnels, and that grant nothing
-- since it is not understood what.
SELECT name AS permission, count(*) AS holders
FROM held JOIN spoken ON spoken."id" = "permission"
WHERE ports IS NULL OR reach IS NULL OR is_guest AND reach = 'device'
GROUP BY name ORDER BY name

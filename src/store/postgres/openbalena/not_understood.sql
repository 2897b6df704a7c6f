-- Goes on from rights.sql: permissions that somebody holds, that open tunnels by their name, and that grant nothing
-- since it is not understood to which devices.
SELECT name AS permission, count(*) AS holders
FROM held JOIN spoken ON spoken."id" = held."permission"
WHERE reach IS NULL OR is_guest AND reach = 'own'
GROUP BY name ORDER BY name

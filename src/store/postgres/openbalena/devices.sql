-- Devices, and the VPN server that holds each one's connection. openBalena does not know under which address:
-- that is for `vpn.addresses` to say.
SELECT device."id"::int8 AS device, device."uuid"::text AS uuid, device."belongs to-application"::int8 AS fleet,
    NULL::text AS address, nullif(instance."ip address", '')::text AS node, device."is connected to vpn" AS online
FROM public."device" AS device
    LEFT JOIN public."service instance" AS instance ON instance."id" = device."is managed by-service instance"
        AND instance."service type" = 'vpn'

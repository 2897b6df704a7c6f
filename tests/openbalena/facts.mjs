// Asks openBalena's own API which permissions and logins open which tunnels, and writes decisions.tsv. README.md says
// how to run it. What is asked is derived here; what the answers are is the API's to say.
import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { createRequire } from 'node:module';
import path from 'node:path';

const [checkout, databaseUrl] = process.argv.slice(2);
const here = import.meta.dirname;
const required = createRequire(path.join(checkout, 'package.json'));
const { Client } = required('pg');

const SECRET = 'json-web-token-secret-of-32-bytes';
const DEVICES = { A: '1'.repeat(32), B: '2'.repeat(32), C: '3'.repeat(32) };
const PORTS = [22222, 80, 48484];

// --- What is asked -----------------------------------------------------------------------------------------------

const OWN = '?actor eq @__ACTOR_ID';
const RESOURCES = [
	'', '.', 'resource.', 'resin.', 'resin.device.', 'resource.device.', 'device.', 'Auth.', 'Auth.device.', 'v7.',
	'v7.device.', 'balena.device.', 'resin.application.', 'resin.device.device.', 'resin.resin.device.', 'Resin.device.',
	'resin.Device.', 'xresin.device.', 'resinxdevice.', 'resin..', 'resin.*.', '*.', ' resin.device.',
	'resin.device$v7.', 'resource.resin.device.', 'resources.',
];
const ACTIONS = [
	'all', 'tunnel-any', 'tunnel-22222', 'tunnel-80', 'tunnel-48484', 'tunnel-443', 'tunnel', 'tunnel-', 'tunnel-all',
	'tunnel-*', 'tunnel-firewall', 'tunnel-install', 'tunnel-anyone', 'tunnel-any-22222', 'tunnel-80-22222',
	'tunnel-22222-80', 'tunnel-022222', 'tunnel-222222', 'tunnel-2222', 'tunnel-22222 ', 'tunnel-22222.all',
	'tunnel-22222.0', 'tunnel-99999999999', 'tunnel-65536', 'TUNNEL-22222', 'tunnel_22222', 'xtunnel-22222', 'any', 'All',
	'ALL', 'all ', 'all.', 'xall', '*', 'read', 'update', 'write', 'ssh-host', 'cloudlink', 'tunnel-22222\n', '',
];
const FILTERS = [
	OWN, '?', '?true', '?false', '?actor eq @__ACTOR_ID?false', '?true?actor eq @__ACTOR_ID', '??', '? actor eq @__ACTOR_ID',
	'?actor eq @__ACTOR_ID ', '?actor  eq @__ACTOR_ID', '?Actor eq @__ACTOR_ID', '?actor ne @__ACTOR_ID',
	'?@__ACTOR_ID eq actor', '?actor eq @__OTHER', '?actor eq 102', '?id eq 2', "?uuid eq '22222222222222222222222222222222'",
	'?belongs_to__application eq 2', '?belongs_to__application/any(a:a/actor eq @__ACTOR_ID)',
	'?actor eq @__ACTOR_ID or true', '?actor eq @__ACTOR_ID or id eq 2', '?actor eq @__ACTOR_ID and not is_frozen',
	'?nonsense(', '?nothing eq 1', '?belongs_to__application/canAccess()',
];

function* permissionSets() {
	for (const resource of RESOURCES) {
		for (const action of ['all', 'tunnel-any', 'tunnel-22222']) yield [resource + action];
	}
	for (const action of ACTIONS) yield ['resin.device.' + action];
	for (const action of ACTIONS.slice(0, 12)) yield ['resource.' + action];
	for (const resource of ['resource.', 'resin.', 'resin.device.']) {
		for (const action of ['all', 'tunnel-22222']) yield [resource + action + OWN];
	}
	for (const filter of FILTERS) yield ['resin.device.tunnel-22222' + filter];
	yield ['resin.device.tunnel-22222', 'resin.device.tunnel-80'];
	yield ['resin.device.tunnel-22222', 'resin.device.all' + OWN];
	yield ['resin.device.tunnel-22222' + OWN, 'resin.tunnel-80' + OWN, 'resource.tunnel-48484' + OWN];
	yield ['resin.device.tunnel-22222?nonsense(', 'resin.device.all'];
	yield ['resin.device.tunnel-22222?nonsense(', 'resin.device.tunnel-80'];
	yield ['resin.device.tunnel-22222?nonsense(', 'resin.device.tunnel-22222' + OWN];
	yield ['resin.device.tunnel-22222?id eq 2', 'resin.device.tunnel-22222' + OWN];
	yield ['resin.device.read', 'resin.device.update', 'service.vpn'];
	yield [];
}

// Holders that get their permissions in another way than the key of device A, which holds them itself.
const HOLDERS = [
	'key of A by role', 'expired key of A', 'key of user', 'key of guest', 'key of user by role', 'user', 'user by role',
	'user until yesterday', 'user by role until yesterday', 'user until tomorrow',
];
const HELD = [['resin.device.all'], ['resource.tunnel-22222'], ['resin.device.tunnel-22222' + OWN], ['resin.device.tunnel-firewall'], []];

// Claims of tokens. The users: 11 (actor 201, secret `eleven`) holds `resin.device.tunnel-22222`; 12 (actor 202, no
// secret) and 13 (actor 203, an empty secret) hold the same. Role `tunnels` has `resin.device.tunnel-80`, role `own`
// `resin.device.all?actor eq @__ACTOR_ID`, role `nothing` nothing. Key `key-of-A` is direct `resin.device.tunnel-48484`.
const claims = (...list) => list.map((claims) => ({ claims }));
const TOKENS = claims(
	{ id: 11, jwt_secret: 'eleven' }, { id: 11, jwt_secret: 'other' }, { id: 11 }, { id: 11, jwt_secret: null },
	{ id: 11, jwt_secret: '' }, { id: 11, jwt_secret: 'eleven', authTime: 1 }, { id: 99, jwt_secret: 'eleven' },
	{ jwt_secret: 'eleven' }, { id: 11, actor: 201, jwt_secret: 'eleven' }, { id: 11, actor: 202, jwt_secret: 'eleven' },
	{ id: '11', jwt_secret: 'eleven' },
	{ id: 12 }, { id: 12, jwt_secret: null }, { id: 12, jwt_secret: '' }, { id: 12, jwt_secret: 'eleven' }, { id: 98 },
	{ id: 13 }, { id: 13, jwt_secret: '' }, { id: 13, jwt_secret: null },
	{ id: 11, jwt_secret: 'eleven', twoFactorRequired: true }, { id: 11, jwt_secret: 'eleven', twoFactorRequired: false },
	{ id: 11, jwt_secret: 'eleven', twoFactorRequired: null }, { id: 11, jwt_secret: 'eleven', twoFactorRequired: 1 },
	{ id: 11, jwt_secret: 'eleven', twoFactorRequired: '' }, { id: 11, jwt_secret: 'other', twoFactorRequired: true },
	{ id: 12, twoFactorRequired: true },
	{ actor: 201, roles: ['tunnels'] }, { actor: 201, roles: ['tunnels'], jwt_secret: 'eleven' },
	{ actor: 201, roles: ['tunnels'], jwt_secret: 'other' }, { actor: 202, roles: ['tunnels'], jwt_secret: 'eleven' },
	{ actor: 202, roles: ['tunnels'], jwt_secret: null }, { actor: 201, roles: [] }, { actor: 201, roles: null },
	{ id: 11, jwt_secret: 'eleven', roles: ['tunnels'] }, { id: 11, actor: 201, jwt_secret: 'eleven', roles: ['tunnels'] },
	{ id: 11, actor: 201, jwt_secret: 'eleven', roles: [] }, { id: 11, actor: 201, jwt_secret: 'eleven', roles: null },
	{ actor: 201, roles: ['tunnels', 'nothing'], bindings: {} }, { actor: 201, roles: ['nobody has this one', 'tunnels'] },
	{ actor: 201, roles: ['nobody has this one'] }, { actor: 201, roles: ['TUNNELS'] }, { actor: 201, roles: 'tunnels' },
	{ actor: 101, roles: ['own'] }, { actor: 201, roles: ['own'] }, { roles: ['tunnels'] },
	{ actor: 201, roles: ['tunnels'], twoFactorRequired: true },
	{ access: { actor: 201, permissions: ['resin.device.tunnel-22222'] } },
	{ access: { actor: 201, permissions: ['resin.device.tunnel-22222', 'resin.device.tunnel-80'] } },
	{ access: { actor: 201, permissions: ['resource.all'] } }, { access: { actor: 201, permissions: ['tunnel-22222'] } },
	{ access: { actor: 201, permissions: ['resin.device.tunnel-443'] } },
	{ access: { actor: 201, permissions: [] } }, { access: { actor: 201 } }, { access: { permissions: ['resource.all'] } },
	{ access: { actor: 0, permissions: ['resource.all'] } }, { access: { actor: 777, permissions: ['resource.all'] } },
	{ access: { actor: 201, permissions: ['resource.all'], twoFactorRequired: true } },
	{ access: { actor: 201, permissions: ['resource.all'] }, twoFactorRequired: true },
	{ access: { actor: 101, permissions: ['resin.device.all' + OWN] } },
	{ id: 11, jwt_secret: 'eleven', access: { actor: 201, permissions: ['resin.device.tunnel-80'] } },
	{ id: 11, jwt_secret: 'eleven', access: { actor: 201 } },
	{ service: 'vpn', apikey: 'key-of-A' }, { service: 'vpn', apikey: 'expired-key' }, { service: 'vpn', apikey: 'unknown' },
	{ service: 'vpn' }, { service: '', apikey: 'key-of-A' }, { apikey: 'key-of-A' },
	{ service: 'vpn', apikey: 'key-of-A', id: 11, jwt_secret: 'eleven' },
	{ service: 'vpn', apikey: 'own-key-of-A' }, {},
);

// What the guest may do. The API reads that once, so each set has an API of its own.
const GUESTS = [[], ['resin.device.tunnel-80'], ['resource.all'], ['resin.device.tunnel-80?id eq 2']];

// --- The database ------------------------------------------------------------------------------------------------

const TABLES = ['api key-has-permission', 'api key-has-role', 'role-has-permission', 'user-has-permission', 'user-has-role',
	'api key', 'role', 'permission', 'device', 'application'];

const database = new Client({ connectionString: databaseUrl });
const permissionIds = new Map();
let last = 1000;

const run = (sql, ...values) => database.query(sql, values);

async function permission(name) {
	if (!permissionIds.has(name)) {
		permissionIds.set(name, ++last);
		await run('INSERT INTO "permission" ("id", "name") VALUES ($1, $2)', last, name);
	}
	return permissionIds.get(name);
}

async function role(name, permissions) {
	const id = ++last;
	await run('INSERT INTO "role" ("id", "name") VALUES ($1, $2)', id, name);
	for (const name of permissions) {
		await run('INSERT INTO "role-has-permission" ("role", "permission") VALUES ($1, $2)', id, await permission(name));
	}
	return id;
}

async function key(text, actor, permissions, { roles = [], expiry = null } = {}) {
	const id = ++last;
	await run('INSERT INTO "api key" ("id", "key", "is of-actor", "expiry date") VALUES ($1, $2, $3, $4)', id, text, actor, expiry);
	for (const name of permissions) {
		await run('INSERT INTO "api key-has-permission" ("api key", "permission") VALUES ($1, $2)', id, await permission(name));
	}
	for (const role of roles) await run('INSERT INTO "api key-has-role" ("api key", "role") VALUES ($1, $2)', id, role);
}

async function user(id, actor, secret, permissions, { roles = [], expiry = null } = {}) {
	await run('INSERT INTO "actor" ("id") VALUES ($1)', actor);
	await run(
		'INSERT INTO "user" ("id", "actor", "username", "password", "jwt secret") VALUES ($1, $2, $3, $4, $5)',
		id, actor, `user ${id}`, '', secret,
	);
	for (const name of permissions) {
		await run('INSERT INTO "user-has-permission" ("user", "permission", "expiry date") VALUES ($1, $2, $3)', id, await permission(name), expiry);
	}
	for (const role of roles) {
		await run('INSERT INTO "user-has-role" ("user", "role", "expiry date") VALUES ($1, $2, $3)', id, role, expiry);
	}
}

// The holder of a row: what it shows to the API.
async function holder(kind, permissions) {
	const text = `key${++last}`;
	const day = 24 * 60 * 60 * 1000;
	const expiry = { yesterday: new Date(Date.now() - day), tomorrow: new Date(Date.now() + day) }[kind.split('until ')[1]] ?? null;
	const isByRole = kind.includes('by role');
	const roles = isByRole ? [await role(text, permissions)] : [];
	const held = isByRole ? [] : permissions;
	if (kind.startsWith('user')) {
		const [id, actor] = [++last, ++last];
		await user(id, actor, text, held, { roles, expiry });
		return sign({ id, jwt_secret: text });
	}
	const actor = kind.includes('of A') ? 101 : kind.includes('guest') ? 1 : 201;
	await key(text, actor, held, { roles, expiry: kind.startsWith('expired') ? new Date(Date.now() - day) : null });
	return text;
}

async function prepare(guest) {
	await run('SET session_replication_role = replica');
	for (const table of TABLES) await run(`DELETE FROM "${table}"`);
	await run('DELETE FROM "user" WHERE "id" <> 1');
	await run('DELETE FROM "actor" WHERE "id" <> 1');
	await run('ALTER TABLE "user" ADD COLUMN IF NOT EXISTS "jwt secret" VARCHAR(255) NULL');
	permissionIds.clear();
	for (const [id, actor] of [[1, 91], [2, 92]]) {
		await run(
			`INSERT INTO "application" ("id", "actor", "is of-class", "organization", "app name", "slug", "is for-device type",
				"application type", "uuid") VALUES ($1, $2, 'fleet', 1, $3, $4, 1, 1, $5)`,
			id, actor, `fleet${id}`, `fleet${id}`, String(id).repeat(32),
		);
	}
	const devices = Object.values(DEVICES).map((uuid, place) => [place + 1, 101 + place, uuid, place < 2 ? 1 : 2]);
	for (const device of devices) {
		await run(
			`INSERT INTO "device" ("id", "actor", "uuid", "belongs to-application", "api heartbeat state", "device name",
				"is of-device type", "is connected to vpn") VALUES ($1, $2, $3, $4, 'online', 'device', 1, true)`,
			...device,
		);
	}
	for (const name of guest) {
		await run('INSERT INTO "user-has-permission" ("user", "permission") VALUES (1, $1)', await permission(name));
	}
	const held = ['resin.device.tunnel-22222'];
	await user(11, 201, 'eleven', held);
	await user(12, 202, null, held);
	await user(13, 203, '', held);
	await role('tunnels', ['resin.device.tunnel-80']);
	await role('own', ['resin.device.all' + OWN]);
	await role('nothing', []);
	await key('key-of-A', 101, ['resin.device.tunnel-48484']);
	await key('own-key-of-A', 101, ['resin.device.all' + OWN]);
	await key('expired-key', 101, ['resin.device.all'], { expiry: new Date(0) });
}

// --- The API -----------------------------------------------------------------------------------------------------

function sign(claims) {
	const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
	const exp = Math.floor(Date.now() / 1000) + 3600;
	const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ exp, ...claims })}`;
	return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`;
}

// Answers as a Redis that holds nothing: the API keeps the permissions of roles there.
function emptyRedis() {
	const server = net.createServer((socket) => {
		let unread = '';
		socket.on('error', () => {});
		socket.on('data', (data) => {
			unread += data;
			for (let words; (words = command()); ) {
				const reply = { get: '$-1\r\n', info: '$17\r\nredis_version:7.0\r\n' }[words[0].toLowerCase()];
				socket.write(reply ?? '+OK\r\n');
			}
		});
		const command = () => {
			const count = /^\*(\d+)\r\n/.exec(unread);
			if (count == null) return;
			let at = count[0].length;
			const words = [];
			while (words.length < Number(count[1])) {
				const size = /^\$(\d+)\r\n/.exec(unread.slice(at));
				if (size == null || unread.length < at + size[0].length + Number(size[1]) + 2) return;
				at += size[0].length;
				words.push(unread.slice(at, at + Number(size[1])));
				at += Number(size[1]) + 2;
			}
			unread = unread.slice(at);
			return words;
		};
	});
	return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
}

const ENVIRONMENT = `API_HOST API_VPN_SERVICE_API_KEY COOKIE_SESSION_SECRET DELTA_HOST DEVICE_CONFIG_OPENVPN_CA VPN_HOST
	VPN_PORT IMAGE_STORAGE_BUCKET IMAGE_STORAGE_ENDPOINT MIXPANEL_TOKEN REGISTRY2_HOST TOKEN_AUTH_BUILDER_TOKEN
	TOKEN_AUTH_CERT_ISSUER TOKEN_AUTH_CERT_KEY TOKEN_AUTH_CERT_KID TOKEN_AUTH_CERT_PUB TOKEN_AUTH_JWT_ALGO
	VPN_SERVICE_API_KEY`.split(/\s+/);

async function startApi(port, redis) {
	const names = Object.fromEntries(ENVIRONMENT.map((name) => [name, '1']));
	const api = spawn('node', ['--import', 'tsx', 'sluicegate-server.ts'], {
		cwd: checkout,
		env: {
			...process.env, ...names, JSON_WEB_TOKEN_SECRET: SECRET, REDIS_IS_CLUSTER: 'false', NODE_ENV: 'production',
			REDIS_HOST: `127.0.0.1:${redis.address().port}`, DATABASE_URL: databaseUrl, PORT: String(port),
			PINEJS_CACHE_FILE: path.join(checkout, '.pinejs-cache.json'), JSON_WEB_TOKEN_EXPIRY_MINUTES: '720',
		},
		stdio: ['ignore', 'pipe', process.env.VERBOSE ? 'inherit' : 'ignore'],
	});
	await new Promise((resolve, reject) => {
		api.stdout.on('data', (text) => String(text).includes('listening') && resolve());
		api.on('exit', () => reject(new Error('the API did not start; VERBOSE=1 shows why')));
	});
	return api;
}

// Asks as open-balena-vpn does (src/utils/device.ts).
async function isOpen(port, token, uuid, tunnel) {
	const response = await fetch(`http://127.0.0.1:${port}/v7/device(uuid=@uuid)/canAccess?@uuid='${uuid}'`, {
		method: 'POST',
		headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` },
		body: JSON.stringify({ action: { or: ['tunnel-any', `tunnel-${tunnel}`] } }),
	});
	const text = await response.text();
	if (!response.ok) return false;
	const { d } = JSON.parse(text);
	return Array.isArray(d) && d.length === 1;
}

async function opens(port, token) {
	const devices = [];
	for (const uuid of Object.values(DEVICES)) {
		const answers = await Promise.all(PORTS.map((tunnel) => isOpen(port, token, uuid, tunnel)));
		devices.push(answers.map((open) => (open ? 'x' : '-')).join(''));
	}
	return devices.join(' ');
}

// --- The table ---------------------------------------------------------------------------------------------------

await database.connect();
copyFileSync(path.join(here, 'server.ts'), path.join(checkout, 'sluicegate-server.ts'));
const redis = await emptyRedis();
const version = (name) => JSON.parse(readFileSync(path.join(checkout, name))).version;
const rows = [];
for (const [place, guest] of GUESTS.entries()) {
	const port = 13400 + place;
	if (place === 0) (await startApi(port + 50, redis)).kill(); // It makes the tables.
	await prepare(guest);
	const asked = [];
	if (place === 0) {
		for (const held of permissionSets()) asked.push(['key of A', held]);
		for (const kind of HOLDERS) for (const held of HELD) asked.push([kind, held]);
	} else {
		for (const kind of ['key of A', 'user']) for (const held of [[], ['resin.device.tunnel-22222']]) asked.push([kind, held]);
	}
	const shown = [];
	for (const [kind, held] of asked) shown.push([kind, held, await holder(kind, held)]);
	for (const { claims } of place < 2 ? TOKENS : TOKENS.filter((_, at) => at % 7 === 0)) {
		shown.push(['token', claims, sign(claims)]);
	}
	for (const unknown of ['nobody', 'a.b.c']) shown.push(['unknown', unknown, unknown]);
	const api = await startApi(port, redis);
	for (const [kind, held, token] of shown) {
		rows.push([JSON.stringify(guest), kind, JSON.stringify(held), await opens(port, token)].join('\t'));
	}
	api.removeAllListeners('exit');
	api.kill();
}
const head = [
	`# open-balena-api ${version('package.json')} with @balena/pinejs ${version('node_modules/@balena/pinejs/package.json')}: written by facts.mjs.`,
	`# The guest's permissions, the holder, what it holds or the claims of its token, and whether devices A, B and C open ports ${PORTS.join(', ')}.`,
];
writeFileSync(path.join(here, 'decisions.tsv'), [...head, ...rows, ''].join('\n'));
redis.close();
await database.end();
process.exit();

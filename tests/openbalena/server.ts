// The part of openBalena's API that answers its VPN, out of the API's own files: it finds out who asks, and decides
// `canAccess` of its version 7. facts.mjs copies this file into a checkout of open-balena-api and starts it there.
import bodyParser from 'body-parser';
import express from 'express';
import passport from 'passport';
import * as pinejs from '@balena/pinejs';
import { model as balena } from './src/balena.js';
import { middleware } from './src/infra/auth/index.js';
import * as jwt from './src/infra/auth/jwt-passport.js';
import { getV7Translations, toVersion, v7AbstractSqlModel } from './src/translations/v7/v7.js';

// As `setupMiddleware` of src/index.ts, without compression, cookies and logs.
const app = express();
app.use(middleware.prefetchApiKey);
app.use(bodyParser.json());
app.use((request, _response, next) => {
	request.body ??= {};
	next();
});
app.use(passport.initialize());
passport.use(jwt.createStrategy());
app.use(jwt.middleware);

await pinejs.init(app, {
	models: [
		{ apiRoot: balena.apiRoot, modelName: balena.modelName, abstractSql: balena.abstractSql },
		{
			apiRoot: 'v7',
			modelName: 'v7',
			abstractSql: v7AbstractSqlModel,
			translateTo: toVersion,
			translations: getV7Translations(),
		},
	],
	users: [{ username: 'guest', password: ' ', permissions: [] }],
} as any);
await import('./src/features/auth/hooks/fetch-api-key.js');
app.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));

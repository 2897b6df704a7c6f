// What `balena device tunnel` does around the tunnel code of the CLI, which is the real one: takes local
// connections, carries each through a tunnel of its own, and says what became of it.
'use strict';

const net = require('net');
const { tunnelConnectionToDevice } = require('balena-cli/build/utils/tunnel.js');

const [tunnelUrl, uuid, port] = process.argv.slice(2);
const sdk = {
  settings: { get: async (name) => ({ tunnelUrl })[name] },
  auth: {
    whoami: async () => ({ actorType: 'user', username: 'alice' }),
    getToken: async () => process.env.TOKEN,
  },
};

tunnelConnectionToDevice(uuid, Number(port), sdk).then((handler) => {
  const server = net.createServer(async (client) => {
    try {
      await handler(client);
      console.log('tunnel open');
    } catch (err) {
      console.log(`error: ${err.message}`);
    }
  });
  server.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
});

// The steps of ../README.md over a browser-like WebSocket. Self-contained: Chromium gets its source text.
//
// `report` takes the name of each step passed. The server pings every two seconds here.
export async function steps(WebSocket, url, report) {
    const socket = new WebSocket(url, ['livechat.v1']);
    const waiting = [];
    const frames = [];
    let closed;
    const wake = () => waiting.splice(0).forEach((resolve) => resolve());
    socket.onmessage = (event) => (frames.push(JSON.parse(event.data)), wake());
    socket.onclose = (event) => ((closed = event), wake());

    // The first frame for which `wanted` is true; those before it are passed over.
    async function next(what, wanted) {
        const deadline = Date.now() + 20_000;
        for (;;) {
            while (frames.length > 0) {
                const frame = frames.shift();
                if (wanted(frame)) return frame;
            }
            if (closed) throw new Error(`closed with ${closed.code} while waiting for ${what}`);
            if (Date.now() > deadline) throw new Error(`no ${what}`);
            await new Promise((resolve) => (waiting.push(resolve), setTimeout(resolve, 1000)));
        }
    }
    function check(condition, what) {
        if (!condition) throw new Error(what);
    }
    async function say(id, message) {
        socket.send(JSON.stringify({ type: 'send_message', data: { message, client_message_id: id } }));
        await next(`message_sent of ${id}`, (frame) => frame.type === 'message_sent' && frame.data.client_message_id === id);
    }
    const told = (id) => (frame) => frame.type === 'new_message' && frame.data.client_message_id === id;

    let isFirst = true;
    await next('connection_established', (frame) => {
        check(isFirst && frame.type === 'connection_established', `the first frame is ${frame.type}`);
        isFirst = false;
        return true;
    });
    check(socket.protocol === 'livechat.v1', `the subprotocol is "${socket.protocol}"`);
    report('connect');

    // `new_message` may come before `message_sent`: it is kept.
    async function round(id, message, first, second) {
        let seen;
        const original = frames.push.bind(frames);
        frames.push = (frame) => (told(id)(frame) && (seen = frame), original(frame));
        await say(id, message);
        report(first);
        if (!seen) await next(`new_message of ${id}`, told(id));
        check(seen.data.message === message, 'the text came back changed');
        if (second) report(second);
        frames.push = original;
    }
    await round('small', 'Grüße, José 😀', 'send', 'receive');
    await round('large', 'x'.repeat(60_000), 'large');

    if (typeof socket.ping === 'function') {
        await new Promise((resolve, reject) => {
            setTimeout(() => reject(new Error('no pong')), 20_000).unref();
            socket.on('pong', (data) => data.toString() === 'are you there' && resolve());
            socket.ping('are you there');
        });
        report('ping');
    } else {
        report('no-ping');
    }

    await new Promise((resolve) => setTimeout(resolve, 6_500));
    socket.send(JSON.stringify({ type: 'ping', request_id: 'after' }));
    await next('pong', (frame) => frame.type === 'pong' && frame.request_id === 'after');
    report('alive');

    socket.close(1000, 'done');
    const deadline = Date.now() + 20_000;
    while (!closed && Date.now() < deadline) await new Promise((resolve) => (waiting.push(resolve), setTimeout(resolve, 1000)));
    check(closed && closed.code === 1000 && closed.wasClean, `closed with ${closed?.code}`);
    report('close');
}

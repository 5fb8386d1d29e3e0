// node run.mjs ws | built-in | chromium
import { steps } from './steps.mjs';

const url = process.env.INTEROP_URL;
const report = (step) => console.log(step);
const [client] = process.argv.slice(2);

if (client === 'ws') {
    await steps((await import('ws')).WebSocket, url, report);
} else if (client === 'built-in') {
    await steps(WebSocket, url, report);
} else if (client === 'chromium') {
    const { launch } = await import('puppeteer-core');
    // Containers and root have no sandbox of Chromium's own; it talks to the server under test only.
    const browser = await launch({
        executablePath: process.env.INTEROP_CHROMIUM,
        args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
        userDataDir: process.env.INTEROP_PROFILE,
    });
    try {
        const page = await browser.newPage();
        await page.exposeFunction('report', report);
        await page.evaluate(`(${steps})(WebSocket, ${JSON.stringify(url)}, window.report)`);
    } finally {
        await browser.close();
    }
} else {
    throw new Error(`unknown client "${client}"`);
}
process.exit(0);

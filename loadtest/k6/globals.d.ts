// What k6 has and its types leave to the browser's, which have much that k6 has not.
declare const console: Record<'log' | 'info' | 'warn' | 'error', (...values: unknown[]) => void>;

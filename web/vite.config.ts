import { defineConfig } from "vite";

// Nothing is inlined: the server's Content-Security-Policy forbids inline scripts and styles.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../server/gradwire_server/ui",
    emptyOutDir: true,
    target: "es2023",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 1200, // Graphviz, as WebAssembly, in the layout worker
  },
  worker: { format: "es" },
});

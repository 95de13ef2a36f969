// All tests of the page in one process, with one server and one browser: to start them takes longer
// than most tests. The last one ends the server.
import "./story.test.mjs";
import "./files.test.mjs";
import "./large.test.mjs";
import "./live.test.mjs";
import "./restart.test.mjs";

// Package e2e drives the examples with a browser, and with OAuth and webhook clients from the npm registry that know nothing of behest. It needs node, Chromium and
// the packages of package.json (npm ci in this folder); without them its tests are skipped and say why, but under CI=true they fail.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// missing is what the machine lacks: a reason to skip for people, a fault for CI.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func chromium(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("CHROMIUM"); path != "" {
		return path
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, "there is no Chromium: install it, or name it in CHROMIUM")
	return ""
}

// node is a runner of scripts that import these packages.
func node(t *testing.T, packages ...string) string {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		missing(t, "there is no node: %v", err)
	}
	for _, name := range packages {
		if _, err := os.Stat(filepath.Join("node_modules", name, "package.json")); err != nil {
			missing(t, "there is no %s: run npm ci in internal/e2e", name)
		}
	}
	return path
}

// build makes the program that the tests drive.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "groupchat")
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	out, err := exec.Command("go", "build", "-o", binary, "github.com/behest-go/behest/examples/groupchat").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

// run runs a script of this folder, for four minutes at most.
func run(t *testing.T, node, script string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, script)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
}

// Whoever knows OAuth 2 and Standard Webhooks can be an app, with the clients they have.
func TestForeignClients(t *testing.T) {
	path := node(t, "openid-client", "oauth4webapi", "jose", "standardwebhooks")
	run(t, path, "clients.mjs", "GROUPCHAT="+build(t))
}

func TestGroupchat(t *testing.T) {
	path, browser := node(t, "playwright-core"), chromium(t)
	binary := build(t)
	base := groupchat(t, binary)
	short := groupchat(t, binary, "-apps", filepath.Join("testdata", "short.json"))

	shots, err := filepath.Abs("output") // is not committed: what the browser saw, also when the test fails
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(shots, 0o755))
	run(t, path, "groupchat.mjs", "BASE="+base, "SHORT="+short, "SHOTS="+shots, "CHROMIUM="+browser)
	if os.Getenv("UPDATE_SCREENSHOT") != "" { // of the README
		picture, err := os.ReadFile(filepath.Join(shots, "groupchat.png"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join("..", "..", "examples", "groupchat", "screenshot.png"), picture, 0o644))
	}
}

// groupchat starts the built program on a free port and stops it, as Ctrl-C does, when the test ends.
func groupchat(t *testing.T, binary string, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if runtime.GOOS == "windows" { // has no signal to send
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return
		}
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		giveUp := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer giveUp.Stop()
		require.NoError(t, cmd.Wait(), "Ctrl-C ends it cleanly; it said: %s", &stderr)
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err, "%s", &stderr)
	base, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	require.True(t, ok, "%q", line)
	return base
}

// Package e2e drives the examples with a browser. It needs node, Chromium and playwright-core (npm ci in this folder); without them its test is
// skipped and says why, but under CI=true it fails.
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

func TestGroupchat(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, "there is no node: %v", err)
	}
	if _, err := os.Stat("node_modules/playwright-core/package.json"); err != nil {
		missing(t, "there is no playwright-core: run npm ci in internal/e2e")
	}
	browser := chromium(t)

	binary := filepath.Join(t.TempDir(), "groupchat")
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	out, err := exec.Command("go", "build", "-o", binary, "github.com/behest-go/behest/examples/groupchat").CombinedOutput()
	require.NoError(t, err, "%s", out)
	base := groupchat(t, binary)
	short := groupchat(t, binary, "-apps", filepath.Join("testdata", "short.json"))

	shots, err := filepath.Abs("output") // is not committed: what the browser saw, also when the test fails
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(shots, 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "groupchat.mjs")
	cmd.Env = append(os.Environ(), "BASE="+base, "SHORT="+short, "SHOTS="+shots, "CHROMIUM="+browser)
	cmd.WaitDelay = 10 * time.Second
	out, err = cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
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

// Package servers starts real databases for tests, and harms them as the world does.
//
// The laws:
//
//  1. A server is its test's own: a free port of the loopback, a folder of its own. It is gone when the test ends, and
//     also when the test's process is killed.
//  2. On a machine without the programs the test skips, by name. Under CI=true it fails instead.
//  3. A server that is killed gets no chance to tidy up: Redis ends by SIGKILL, PostgreSQL by an immediate stop. What
//     it had on disk is there when it starts again, on the same port.
//  4. A [Proxy] harms one request or every one, and says how often it did.
//
// Use:
//
//	server := servers.StartPostgres(t, "max_connections=50")
//	proxy := servers.StartProxy(t, server.Addr())
//	db := open(t, servers.DSN(proxy.Addr()))
//	proxy.Once("ledger-7", servers.Fault{Answer: 0}) // carried out, and never answered
//	server.Kill()
//	server.Start()
package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Server is a database of a test's own. Make it with StartPostgres or StartRedis. Its methods are for one goroutine
// at a time.
type Server struct {
	tb   testing.TB
	dir  string
	port int
	args []string // of the program, but for the port
	log  string
	// stop is the command that ends the server at once, for pid.
	stop  func(pid int) []string
	mend  func() // before it is started again; may be nil
	ready func(ctx context.Context, s *Server) bool
	guard *guard
	ended chan struct{}
}

// limit is how long a server may take to start or to end.
const limit = 60 * time.Second

// StartPostgres starts a PostgreSQL with a fresh cluster, in UTF-8, where the user postgres needs no password (see
// [DSN]). Settings are like "fsync=off". Who runs as root has it run by the user postgres.
func StartPostgres(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	bin := postgresBinaries(tb)
	s := &Server{tb: tb, dir: folder(tb)}
	var as []string
	data := filepath.Join(s.dir, "data")
	if os.Getuid() == 0 {
		as = []string{"runuser", "-u", "postgres", "--"}
		s.must(exec.Command("chown", "postgres", s.dir))
	}
	in := func(program string, args ...string) []string {
		return slices.Concat(as, []string{filepath.Join(bin, program)}, args)
	}
	init := in("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C", "-N")
	s.must(exec.Command(init[0], init[1:]...))
	s.args = in("postgres", "-D", data, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
	for _, set := range settings {
		s.args = append(s.args, "-c", set)
	}
	s.args = append(s.args, "-p")
	s.stop = func(int) []string { return in("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop") }
	s.ready = func(_ context.Context, s *Server) bool {
		// The last line of this file is what the server says of itself. See pidfile.h of PostgreSQL.
		pid, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		lines := strings.Split(string(pid), "\n")
		return err == nil && len(lines) > 7 && lines[3] == strconv.Itoa(s.port) && strings.TrimSpace(lines[7]) == "ready"
	}
	s.launch()
	return s
}

// DSN is how to connect to a server of StartPostgres at this address: its own or a proxy's.
func DSN(addr string) string { return "postgres://postgres@" + addr + "/postgres?sslmode=disable" }

// StartRedis starts a Redis. Settings follow as "--name", "value".
func StartRedis(tb testing.TB, args ...string) *Server {
	tb.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		lacking(tb, "redis-server is not installed")
	}
	s := &Server{tb: tb, dir: folder(tb)}
	s.args = slices.Concat([]string{program, "--bind", "127.0.0.1", "--dir", s.dir, "--daemonize", "no"}, args, []string{"--port"})
	s.stop = func(pid int) []string { return []string{"kill", "-9", strconv.Itoa(pid)} }
	s.mend = func() { s.mendAppendOnly(program) }
	s.ready = func(ctx context.Context, s *Server) bool {
		info := s.info(ctx)
		return strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", s.guard.pid)) && strings.Contains(info, "\r\nloading:0\r\n")
	}
	s.launch()
	return s
}

// mendAppendOnly takes from the file of a Redis that was killed what it was just writing, as redis-check-aof does. Redis by itself, with aof-load-truncated, leaves the
// beginning of a transaction there, and carries that out with what comes after it when it starts once more.
func (s *Server) mendAppendOnly(program string) {
	s.tb.Helper()
	files, _ := filepath.Glob(filepath.Join(s.dir, "appendonlydir", "*.manifest")) // from Redis 7 on
	if len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(s.dir, "appendonly.aof"))
	}
	for _, file := range files {
		check := &exec.Cmd{Path: program, Args: []string{"redis-check-aof", "--fix", file}, Stdin: strings.NewReader("y\n")} // it goes by its name
		s.must(check)
	}
}

// info is what a Redis says of itself, or nothing.
func (s *Server) info(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return ""
	}
	defer conn.Close()
	if at, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(at)
	}
	_, _ = io.WriteString(conn, "INFO\r\nQUIT\r\n")
	text, _ := io.ReadAll(conn)
	return string(text)
}

// folder is short and can be walked through by another user, as the test's own is not.
func folder(tb testing.TB) string {
	dir, err := os.MkdirTemp("", "behest")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

func postgresBinaries(tb testing.TB) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // where Debian puts what is not in the path
	slices.SortFunc(found, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		lacking(tb, "the programs of a PostgreSQL server are not installed")
	}
	return filepath.Dir(path)
}

// lacking ends a test for which the machine lacks something.
func lacking(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(what + ", and CI must have it")
	}
	tb.Skip(what)
}

func (s *Server) must(cmd *exec.Cmd) {
	s.tb.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		s.tb.Fatalf("%s: %v: %s", filepath.Base(cmd.Path), err, out)
	}
}

// launch picks a port and starts. Somebody else may take a free port before the server does.
func (s *Server) launch() {
	s.tb.Helper()
	s.log = filepath.Join(s.dir, "log")
	s.tb.Cleanup(s.Kill)
	for range 10 {
		s.port = FreePort(s.tb)
		if s.run() {
			return
		}
	}
	s.tb.Fatalf("the server does not start: %s", s.said())
}

// FreePort is a port of the loopback that is free at this moment, and so is the one 10,000 above it, where a node of
// Redis Cluster talks to others.
func FreePort(tb testing.TB) int {
	tb.Helper()
	for range 200 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if port > 55000 {
			continue
		}
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port+10000)); err == nil {
			_ = l.Close()
			return port
		}
	}
	tb.Fatal("no free port")
	return 0
}

// run starts the process and waits until it answers.
func (s *Server) run() bool {
	s.tb.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.args[0], append(s.args[1:len(s.args):len(s.args)], strconv.Itoa(s.port))...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	if s.guard, err = newGuard(cmd.Process.Pid, s.stop(cmd.Process.Pid), s.dir, log); err != nil {
		_ = cmd.Process.Kill()
		s.tb.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait()
	}(s.ended)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if Eventually(ctx, s.ended, func() bool { return s.ready(ctx, s) }) {
		return true
	}
	s.Kill()
	return false
}

// said is the end of what the server has said.
func (s *Server) said() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(text[max(0, len(text)-2000):]))
}

// Dir is where the server keeps what it has.
func (s *Server) Dir() string { return s.dir }

// Addr is host and port.
func (s *Server) Addr() string { return fmt.Sprint("127.0.0.1:", s.port) }

// Port is that of Addr.
func (s *Server) Port() int { return s.port }

// Ended is closed when the process that runs now has ended.
func (s *Server) Ended() <-chan struct{} { return s.ended }

// Kill ends the server at once, as a crash does, and returns when it is gone. One that is gone is no error.
func (s *Server) Kill() {
	s.tb.Helper()
	if s.guard == nil {
		return
	}
	err := s.guard.spring()
	s.guard = nil
	select {
	case <-s.ended:
	case <-time.After(limit):
		s.tb.Errorf("the server does not end (%v): %s", err, s.said())
	}
}

// Start starts a server again that was killed, and returns when it answers. What a Redis had written by half is taken away first.
func (s *Server) Start() {
	s.tb.Helper()
	if s.guard != nil {
		s.tb.Fatal("the server was not killed")
	}
	if s.mend != nil {
		s.mend()
	}
	if !s.run() {
		s.tb.Fatalf("the server does not start again: %s", s.said())
	}
}

// Eventually asks until it is so. It gives up, with false, when ctx or end does.
func Eventually(ctx context.Context, end <-chan struct{}, so func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if so() {
			return true
		}
		select {
		case <-tick.C:
		case <-end:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// A guard runs a command when it is told to, or when its input ends because the test's process has died of whatever: then
// nobody else removes the folder.
type guard struct {
	pid  int // which is guarded
	in   io.WriteCloser
	wait func() error
	once sync.Once
	err  error
}

func newGuard(pid int, stop []string, dir string, log io.Writer) (*guard, error) {
	const script = `trap '' INT TERM; read -r told; dir=$1; shift; "$@"; code=$?; [ -n "$told" ] || rm -rf "$dir"; exit $code`
	cmd := exec.Command("sh", slices.Concat([]string{"-c", script, "sh", dir}, stop)...)
	cmd.Stdout, cmd.Stderr = log, log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return &guard{pid: pid, in: in, wait: cmd.Wait}, nil
}

// spring runs the command now, once.
func (g *guard) spring() error {
	g.once.Do(func() {
		_, err := io.WriteString(g.in, "now\n")
		g.err = errors.Join(err, g.in.Close(), g.wait())
	})
	return g.err
}

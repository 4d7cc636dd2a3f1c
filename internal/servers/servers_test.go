package servers_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/servers"
)

// orphan, in the environment, makes the test binary a process that starts a Redis and waits to be killed.
const orphan = "BEHEST_SERVERS_ORPHAN"

// ask sends a line on a connection of its own and returns the first line of the answer.
func ask(addr, line string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, line+"\r\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func TestRedis(t *testing.T) {
	s := servers.StartRedis(t, "--save", "", "--appendonly", "yes", "--appendfsync", "always")
	for i := range 3 {
		got, err := ask(s.Addr(), "INCR n")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(":", i+1), got, "what was acknowledged is there after a crash")
		s.Kill()
		_, err = ask(s.Addr(), "INCR n")
		require.Error(t, err)
		s.Kill() // again
		s.Start()
	}
}

func TestPostgres(t *testing.T) {
	s := servers.StartPostgres(t, "fsync=off")
	for range 2 {
		conn, err := net.Dial("tcp", s.Addr())
		require.NoError(t, err)
		// SSLRequest: length 8, code 80877103. The answer is one letter. See "Message Formats" in PostgreSQL's manual.
		_, err = conn.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47})
		require.NoError(t, err)
		letter := make([]byte, 1)
		_, err = io.ReadFull(conn, letter)
		require.NoError(t, err)
		require.Equal(t, "N", string(letter))
		require.NoError(t, conn.Close())
		s.Kill()
		_, err = net.Dial("tcp", s.Addr())
		require.Error(t, err)
		s.Start()
	}
}

// Whatever ends a test's process, its servers end with it.
func TestOrphan(t *testing.T) {
	if os.Getenv(orphan) != "" {
		fmt.Println("at", servers.StartRedis(t, "--save", "").Addr())
		select {}
	}
	servers.StartRedis(t, "--save", "").Kill() // or skip here
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run", "^TestOrphan$")
	temp := t.TempDir()
	cmd.Env = append(os.Environ(), orphan+"=1", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	addr := strings.TrimPrefix(strings.TrimSpace(line), "at ")
	got, err := ask(addr, "PING")
	require.NoError(t, err)
	require.Equal(t, "+PONG", got)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.True(t, servers.Eventually(ctx, nil, func() bool { _, err := ask(addr, "PING"); return err != nil }), "it runs on")
	require.True(t, servers.Eventually(ctx, nil, func() bool {
		left, err := os.ReadDir(temp)
		return err == nil && len(left) == 0
	}), "its folder is left behind")
}

// echo answers each line with "you said" and the line, and keeps what it has heard.
func echo(t *testing.T) (addr string, heard chan string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	heard = make(chan string, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					line, err := in.ReadString('\n')
					heard <- strings.TrimSpace(line)
					if err != nil {
						return
					}
					if _, err := io.WriteString(conn, "you said "+line); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), heard
}

func TestProxy(t *testing.T) {
	addr, heard := echo(t)
	p := servers.StartProxy(t, addr)
	for _, c := range []struct {
		name         string
		fault        servers.Fault
		hears, reads string
		fails        bool
	}{
		{"nothing", servers.Fault{}, "hello", "you said hello", false},
		{"before", servers.CutRequest(0), "", "", true},
		{"in the request", servers.CutRequest(3), "hel", "", true},
		{"after", servers.CutAnswer(0), "hello", "", true},
		{"in the answer", servers.CutAnswer(7), "hello", "you sai", true},
		{"behind the answer", servers.CutAnswer(1000), "hello", "you said hello", false},
		{"late", servers.Delay(20 * time.Millisecond), "hello", "you said hello", false},
		{"never", servers.Hang(), "hello", "", true},
	} {
		p.Once("hello", c.fault)
		before := p.Harmed().Requests
		conn, err := net.Dial("tcp", p.Addr())
		require.NoError(t, err)
		began := time.Now()
		wait := 5 * time.Second
		if c.name == "never" {
			wait = 50 * time.Millisecond
		}
		require.NoError(t, conn.SetDeadline(began.Add(wait)))
		_, err = io.WriteString(conn, "hello\r\n")
		require.NoError(t, err)
		got, err := bufio.NewReader(conn).ReadString('\n')
		require.Equal(t, c.fails, err != nil, "%s: %v", c.name, err)
		require.Equal(t, c.reads, strings.TrimSpace(got), c.name)
		if c.name == "late" {
			require.GreaterOrEqual(t, time.Since(began), 20*time.Millisecond)
		}
		require.NoError(t, conn.Close())
		require.Equal(t, c.hears, <-heard, c.name)
		if c.hears == "hello" {
			require.Empty(t, <-heard, "%s: it was sent again", c.name)
		}
		harm := servers.Harm{Requests: before + 1, Request: len("hello\r\n"), Answer: len("you said hello\r\n")}
		if c.hears != "hello" || c.name == "nothing" {
			harm.Answer = 0
		}
		require.Equal(t, harm, p.Harmed(), c.name)
	}
	p.Set(servers.CutAnswer(0))
	_, err := ask(p.Addr(), "x")
	require.Error(t, err)
	p.Set(servers.Fault{})
	got, err := ask(p.Addr(), "x")
	require.NoError(t, err)
	require.Equal(t, "you said x", got)
	p.Hold(true)
	late := make(chan string, 1)
	go func() {
		answer, _ := ask(p.Addr(), "y")
		late <- answer
	}()
	for wait := time.After(30 * time.Millisecond); wait != nil; {
		select {
		case line := <-heard: // perhaps of before
			require.NotEqual(t, "y", line, "it has passed")
		case <-late:
			t.Fatal("there is an answer")
		case <-wait:
			wait = nil
		}
	}
	p.Hold(false)
	require.Equal(t, "you said y", <-late)
	p.Refuse(true)
	_, err = ask(p.Addr(), "x")
	require.Error(t, err)
	p.Refuse(false)
	_, err = ask(p.Addr(), "x")
	require.NoError(t, err)
}

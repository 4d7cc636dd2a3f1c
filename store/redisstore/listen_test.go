package redisstore_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
)

// listens runs a Listen until the test ends, and waits until it listens.
func listens(t *testing.T, s *redisstore.Store) (told chan string, ended chan error) {
	t.Helper()
	told, ended = make(chan string, 10_000), make(chan error, 1)
	ctx, cancel := context.WithCancel(background)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.Listen(ctx, func(app string) { told <- app })
	}()
	t.Cleanup(func() { cancel(); <-done })
	require.Empty(t, hear(t, told))
	return told, ended
}

func hear(t *testing.T, told chan string) string {
	t.Helper()
	select {
	case app := <-told:
		return app
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is told")
		return ""
	}
}

func due(id, app string, at time.Time) store.Op {
	return store.Put(store.Record{Kind: "push", ID: id, App: app, Due: at, NotAfter: at.Add(time.Minute)})
}

// tells holds for any server: what one client puts another hears of, and nothing else.
func tells(t *testing.T, writer, listener redis.UniversalClient) {
	prefix := fresh()
	s := open(t, writer, prefix)
	told, _ := listens(t, open(t, listener, prefix))
	other, _ := listens(t, open(t, listener, fresh()))

	account(t, s, "a1", 9)
	apply(t, s, use("a1", "1")...)
	apply(t, s, due("a1.later", "app", now.Add(time.Microsecond)))
	apply(t, s, store.Spend("push", "a1.window", 1, &store.Record{App: "app", Due: now, Left: 5}))
	out, err := s.Apply(background, now, []store.Op{due("a1.refused", "app", now), store.Check("push", "a1.later", 0)})
	require.NoError(t, err)
	require.Equal(t, store.Conflict, out.Reason)
	require.Empty(t, told, "a use, what is due later, what was refused")

	odd := "an odd \x00\xff app"
	apply(t, s, due("a1.1", "first", now), due("a1.2", odd, now.Add(-time.Hour)), due("a1.3", "", now))
	require.Equal(t, []string{"first", odd, ""}, []string{hear(t, told), hear(t, told), hear(t, told)})
	r := due("a1.later", "again", now).Record
	r.Version = 1
	apply(t, s, store.Put(r))
	require.Equal(t, "again", hear(t, told))

	// From every slot.
	want := map[string]bool{}
	for i := range 300 {
		app := fmt.Sprint("app", i)
		want[app] = true
		apply(t, s, due(fmt.Sprintf("b%d.1", i), app, now))
	}
	for range 300 {
		app := hear(t, told)
		require.True(t, want[app], app)
		delete(want, app)
	}
	require.Empty(t, told)
	require.Empty(t, other, "another store's")
}

func TestListen(t *testing.T) {
	server := quiet(t)
	for name, f := range map[string]func(*redis.Options){
		"plain":                 func(*redis.Options) {},
		"RESP2":                 func(o *redis.Options) { o.Protocol = 2 },
		"ContextTimeoutEnabled": func(o *redis.Options) { o.ContextTimeoutEnabled = true },
	} {
		t.Run(name, func(t *testing.T) { tells(t, server.client(f), server.client(f)) })
	}
}

func TestListenCluster(t *testing.T) {
	nodes := cluster(t, 3)
	tells(t, clusterClient(t, nodes), clusterClient(t, nodes))
}

// A Listen ends when it is told to, and when its connection does; another one listens again.
func TestListenEnds(t *testing.T) {
	server := start(t, "--save", "", "--appendonly", "yes")
	s := open(t, server.client(), fresh())
	ctx, cancel := context.WithCancel(background)
	err := s.Listen(ctx, func(string) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "redisstore: listen: ")
	require.ErrorIs(t, s.Listen(ctx, func(string) { t.Error("told") }), context.Canceled)

	_, ended := listens(t, s)
	server.Kill()
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "redisstore: listen: ")
	case <-time.After(20 * time.Second):
		t.Fatal("it does not notice")
	}
	require.ErrorContains(t, s.Listen(background, func(string) { t.Error("told") }), "redisstore: listen: ")
	server.Start()
	told, _ := listens(t, s)
	apply(t, s, due("a1.1", "app", now))
	require.Equal(t, "app", hear(t, told))
}

// Who may not publish writes all the same.
func TestListenWithoutPermission(t *testing.T) {
	server := quiet(t)
	c := server.client()
	require.NoError(t, c.Do(background, "acl", "setuser", "mute", "on", ">secret", "~*", "+@all", "resetchannels").Err())
	mute := server.client(func(o *redis.Options) { o.Username, o.Password = "mute", "secret" })
	prefix := fresh()
	s := open(t, mute, prefix)
	told, _ := listens(t, open(t, c, prefix))
	apply(t, s, due("a1.1", "app", now))
	got, err := s.Claim(background, store.Query{Kind: "push", DueBy: now}, now.Add(time.Minute))
	require.NoError(t, err)
	require.Len(t, got, 1)
	apply(t, open(t, c, prefix), due("a1.2", "loud", now))
	require.Equal(t, "loud", hear(t, told), "and nothing before")
	require.ErrorContains(t, s.Listen(background, func(string) { t.Error("told") }), "redisstore: listen: ")
}

// An issue publishes in its one command, and a use publishes nothing.
func TestListenCostsNoCommand(t *testing.T) {
	server := quiet(t)
	s := open(t, server.client(), "cost")
	account(t, s, "a1", 9)
	apply(t, s, use("a1", "0")...)
	require.Len(t, watch(t, server, func() { apply(t, s, due("a1.1", "app", now)) }), 1)

	conn, err := net.Dial("tcp", server.Addr())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "MONITOR\r\n")
	require.NoError(t, err)
	in := bufio.NewReader(conn)
	_, err = in.ReadString('\n')
	require.NoError(t, err)
	apply(t, s, use("a1", "1")...)
	apply(t, s, due("a1.2", "app", now))
	published := 0
	for inUse := true; ; {
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		inUse = inUse && !strings.Contains(line, "a1.2")
		if strings.Contains(strings.ToUpper(line), `"PUBLISH"`) {
			require.False(t, inUse, line)
			published++
			break
		}
	}
	require.Equal(t, 1, published)
}

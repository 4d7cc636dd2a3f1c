package redisstore_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
)

var now = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

func apply(tb testing.TB, s store.Store, ops ...store.Op) {
	tb.Helper()
	out, err := s.Apply(background, now, ops)
	require.NoError(tb, err)
	require.True(tb, out.Applied(), "%v", out)
}

// account is what a use needs.
func account(tb testing.TB, s store.Store, name string, uses int64) {
	tb.Helper()
	apply(tb, s, store.Put(store.Record{Kind: "account", ID: name}), store.Put(store.Record{Kind: "here", ID: name + ".bookbot", App: "bookbot"}),
		store.Put(store.Record{Kind: "grant", ID: name + ".g1", Owner: name, App: "bookbot", Data: make([]byte, 200)}),
		store.Put(store.Record{Kind: "token", ID: name + ".g1", Left: uses, NotAfter: now.Add(time.Hour), Data: make([]byte, 32)}))
}

// use is what one use of a token is: three checks, a spend, a ledger entry.
func use(name, entry string) []store.Op {
	return []store.Op{
		store.Check("account", name, 1), store.Check("here", name+".bookbot", 1), store.Check("grant", name+".g1", 1), store.Spend("token", name+".g1", 1, nil),
		store.Put(store.Record{Kind: "ledger", ID: name + "." + entry, Owner: name, App: "bookbot", Data: make([]byte, 120)}),
	}
}

func left(tb testing.TB, s store.Store, name string) int64 {
	tb.Helper()
	got, err := s.Get(background, "token", name+".g1")
	require.NoError(tb, err)
	require.Len(tb, got, 1)
	return got[0].Left
}

func entries(tb testing.TB, s store.Store, name string) map[string]bool {
	tb.Helper()
	all := make(map[string]bool)
	q := store.Query{Kind: "ledger", Prefix: name + ".", Limit: store.MaxPage}
	for {
		page, err := s.List(background, q)
		require.NoError(tb, err)
		for _, r := range page {
			all[r.ID] = true
		}
		if len(page) < q.Limit {
			return all
		}
		q.After = page[len(page)-1].ID
	}
}

// watch is MONITOR: what clients sent while f ran, without what scripts did with it.
func watch(t *testing.T, server *server, f func()) (lines []string) {
	conn, err := net.Dial("tcp", server.Addr())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "MONITOR\r\n")
	require.NoError(t, err)
	in := bufio.NewReader(conn)
	ok, err := in.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "+OK\r\n", ok)
	f()
	require.NoError(t, server.client().Do(background, "echo", "the-end").Err())
	for {
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		if strings.Contains(line, "the-end") {
			return lines
		}
		if !strings.Contains(line, " lua] ") && !strings.Contains(line, `"hello"`) && !strings.Contains(line, `"client"`) {
			lines = append(lines, line)
		}
	}
}

func TestOneCommand(t *testing.T) {
	server := quiet(t)
	s := open(t, server.client(), "one")
	account(t, s, "a1", 9)
	apply(t, s, use("a1", "0")...)
	for name, f := range map[string]func(){
		"a use":        func() { apply(t, s, use("a1", "1")...) },
		"a revocation": func() { apply(t, s, store.Put(store.Record{Kind: "rev", ID: "a1.all"})) },
		"a get": func() {
			got, err := s.Get(background, "ledger", "a1.0", "a1.1", "a1.none")
			require.NoError(t, err)
			require.NotEmpty(t, got)
		},
	} {
		lines := watch(t, server, f)
		if name == "a get" && len(lines) == 2 { // the first time the server does not know the script
			lines = watch(t, server, f)
		}
		require.Len(t, lines, 1, "%s: %q", name, lines)
		require.Contains(t, lines[0], `"evalsha"`, name)
	}
	// A node that has never seen the grant needs no more.
	other := open(t, server.client(), "one")
	require.Len(t, watch(t, server, func() { apply(t, other, use("a1", "2")...) }), 1)
}

func TestScriptFlush(t *testing.T) {
	server := quiet(t)
	c := server.client()
	s := open(t, c, "flush")
	account(t, s, "a1", 9)
	apply(t, s, store.Put(store.Record{Kind: "task", ID: "a1.1", Due: now, NotAfter: now, App: "x"}), store.Put(store.Record{Kind: "task", ID: "a1.2", Due: now, App: "y"}))
	flush := func() { require.NoError(t, c.ScriptFlush(background).Err()) }
	flush()
	apply(t, s, use("a1", "1")...)
	flush()
	require.EqualValues(t, 8, left(t, s, "a1"))
	flush()
	require.Len(t, entries(t, s, "a1"), 1)
	flush()
	got, err := s.Claim(background, store.Query{Kind: "task", DueBy: now, NotApps: []string{"y"}}, now.Add(time.Minute))
	require.NoError(t, err)
	require.Len(t, got, 1)
	flush()
	n, err := s.Purge(background, "task", now.Add(time.Second), 10)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestCorrupt(t *testing.T) {
	server := quiet(t)
	c := server.client()
	for name, damage := range map[string]func(key string) error{
		"nonsense":      func(key string) error { return c.Set(background, key, "nonsense", 0).Err() },
		"empty":         func(key string) error { return c.HSet(background, "h", "x", "y").Err() },
		"another type":  func(key string) error { c.Del(background, key); return c.LPush(background, key, "x").Err() },
		"a wrong digit": func(key string) error { return c.SetRange(background, key, 20, "x").Err() },
		"a wrong mark":  func(key string) error { return c.SetRange(background, key, 0, "2").Err() },
		"evicted":       func(key string) error { return c.Del(background, key).Err() },
	} {
		t.Run(name, func(t *testing.T) {
			prefix := fresh()
			s := open(t, c, prefix)
			r := store.Record{Kind: "token", ID: "a1.g1", Left: 5, Due: now, NotAfter: now, App: "x"}
			apply(t, s, store.Put(r), store.Put(store.Record{Kind: "token", ID: "a1.g2", Left: 5}))
			keys, err := c.Keys(background, prefix+":*:r:token:a1.g1").Result()
			require.NoError(t, err)
			require.Len(t, keys, 1)
			if name == "empty" {
				require.NoError(t, c.Set(background, keys[0], "", 0).Err())
			}
			require.NoError(t, damage(keys[0]))
			later := now.Add(time.Second)
			calls := map[string]func() error{
				"list":  func() error { _, err := s.List(background, store.Query{Kind: "token"}); return err },
				"claim": func() error { _, err := s.Claim(background, store.Query{Kind: "token", DueBy: now}, later); return err },
				"purge": func() error { _, err := s.Purge(background, "token", later, 5); return err },
			}
			if name != "evicted" { // which these cannot tell from never written
				calls["get"] = func() error { _, err := s.Get(background, "token", "a1.g1"); return err }
				calls["apply"] = func() error {
					_, err := s.Apply(background, now.Add(-time.Hour), []store.Op{store.Put(store.Record{Kind: "token", ID: "a1.new"}), store.Spend("token", "a1.g1", 1, nil)})
					return err
				}
			}
			for what, call := range calls {
				err := call()
				require.ErrorIs(t, err, redisstore.ErrCorrupt, what)
				require.ErrorContains(t, err, `redisstore: `+what+`: corrupt record: token "a1.g1"`)
			}
			got, err := s.Get(background, "token", "a1.g2", "a1.new")
			require.NoError(t, err)
			require.Len(t, got, 1)
		})
	}
}

// TestWrittenAgain: what was evicted and then written again is found out where an index still lists it as it was. Nobody looks for it for ever.
func TestWrittenAgain(t *testing.T) {
	c := quiet(t).client()
	later, at := now.Add(time.Hour), now.Add(time.Second)
	for name, again := range map[string]time.Time{"without times": {}, "with later times": later} {
		prefix := fresh()
		s := open(t, c, prefix)
		r := store.Record{Kind: "token", ID: "a1.g1", Due: now, NotAfter: now, App: "x"}
		apply(t, s, store.Put(r))
		keys, err := c.Keys(background, prefix+":*:r:token:a1.g1").Result()
		require.NoError(t, err)
		require.NoError(t, c.Del(background, keys...).Err())
		r.Due, r.NotAfter = again, again
		apply(t, s, store.Put(r))
		ctx, cancel := context.WithTimeout(background, 10*time.Second)
		defer cancel()
		for _, q := range []store.Query{{Kind: "token", DueBy: at}, {Kind: "token", DueBy: at, App: "x"}, {Kind: "token", DueBy: at, NotApps: []string{"y"}}} {
			got, err := s.Claim(ctx, q, later)
			require.Empty(t, got)
			if again.IsZero() || q.App != "" { // the other indexes have been put right
				require.ErrorIs(t, err, redisstore.ErrCorrupt, "%s: %+v", name, q)
				require.ErrorContains(t, err, `redisstore: claim: corrupt record: token "a1.g1"`)
			} else {
				require.NoError(t, err)
			}
		}
		n, err := s.Purge(ctx, "token", at, 10)
		require.Zero(t, n)
		if again.IsZero() {
			require.ErrorIs(t, err, redisstore.ErrCorrupt)
		} else {
			require.NoError(t, err)
		}
	}
}

func TestOpen(t *testing.T) {
	look := func(c redis.UniversalClient, opts redisstore.Options) (string, error) {
		var log bytes.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		_, err := redisstore.Open(background, c, opts)
		return log.String(), err
	}
	server := quiet(t)
	c := server.client()
	for _, step := range []struct{ name, value, says string }{
		{"", "", "keeps nothing on disk"},
		{"save", "3600 1", "snapshots"},
		{"appendonly", "yes", "appendfsync=everysec"},
		{"appendfsync", "always", "aof-load-truncated no"},
		{"aof-load-truncated", "no", ""},
		{"maxmemory-policy", "volatile-lru", ""},
		{"maxmemory-policy", "allkeys-lru", "policy=allkeys-lru"},
	} {
		if step.name != "" {
			require.NoError(t, c.ConfigSet(background, step.name, step.value).Err())
		}
		said, err := look(c, redisstore.Options{})
		require.NoError(t, err)
		if step.says == "" {
			require.Empty(t, said)
		} else {
			require.Contains(t, said, step.says)
		}
	}
	for _, prefix := range []string{"a{b", "a}", strings.Repeat("x", 65)} {
		_, err := look(c, redisstore.Options{Prefix: prefix})
		require.ErrorContains(t, err, "redisstore: open: ")
	}
	_, err := look(nil, redisstore.Options{})
	require.ErrorContains(t, err, "no client")
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": server.Addr()}})
	defer func() { _ = ring.Close() }()
	_, err = look(ring, redisstore.Options{})
	require.ErrorContains(t, err, "Ring")
	reader := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr()}, ReadOnly: true})
	defer func() { _ = reader.Close() }()
	_, err = look(reader, redisstore.Options{})
	require.ErrorContains(t, err, "replicas")
	replica := start(t, "--save", "", "--replicaof", fmt.Sprint("127.0.0.1 ", server.Port()))
	_, err = look(replica.client(), redisstore.Options{})
	require.ErrorContains(t, err, "is a replica")
	node := start(t, "--save", "", "--cluster-enabled", "yes")
	_, err = look(node.client(), redisstore.Options{})
	require.ErrorContains(t, err, "node of a cluster")
	server.Kill()
	_, err = look(c, redisstore.Options{})
	require.ErrorContains(t, err, "redisstore: open: ")
}

// TestFull: at maxmemory nothing is written by halves.
func TestFull(t *testing.T) {
	server := quiet(t)
	c := server.client()
	s := open(t, c, "full")
	account(t, s, "a1", 9)
	require.NoError(t, c.ConfigSet(background, "maxmemory", "1").Err())
	_, err := s.Apply(background, now, use("a1", "1"))
	require.ErrorContains(t, err, "OOM")
	require.NoError(t, c.ConfigSet(background, "maxmemory", "0").Err())
	require.EqualValues(t, 9, left(t, s, "a1"))
	require.Empty(t, entries(t, s, "a1"))
}

// TestLeavesNothing: what is deleted and purged leaves no key behind.
func TestLeavesNothing(t *testing.T) {
	server := quiet(t)
	c := server.client()
	s := open(t, c, "leaves")
	for i := range 40 {
		id := fmt.Sprintf("a%d.1", i)
		r := store.Record{Kind: "t:%", ID: id, Owner: "o", App: fmt.Sprint("app", i%3), Due: now, NotAfter: now, Data: []byte("x")}
		apply(t, s, store.Put(r))
		r.Version, r.App, r.Due = 1, "other", now.Add(time.Second)
		apply(t, s, store.Put(r))
	}
	got, err := s.Claim(background, store.Query{Kind: "t:%", DueBy: now.Add(time.Minute)}, now.Add(time.Hour))
	require.NoError(t, err)
	require.Len(t, got, 40)
	for _, r := range got[:20] {
		apply(t, s, store.Delete(r.Kind, r.ID, r.Version))
	}
	n, err := s.Purge(background, "t:%", now.Add(1000), 100)
	require.NoError(t, err)
	require.Equal(t, 20, n)
	size, err := c.DBSize(background).Result()
	require.NoError(t, err)
	require.Zero(t, size)
}

// Package nodes runs several servers over one real store, as a deployment does: what one issues another delivers, one
// of them purges, and all of them outlive a store that goes away. Servers are the test's own, see internal/servers.
package nodes

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
	"github.com/behest-go/behest/store/sqlite"
	"github.com/behest-go/behest/store/sqlstore"
)

// A handle is a node's own on a store that nodes share.
type handle struct {
	store store.Store
	waker authz.Waker // nil: there is none
}

// waits is a notification by pgx.
func waits(ctx context.Context, conn any) (string, error) {
	n, err := conn.(*stdlib.Conn).Conn().WaitForNotification(ctx)
	if err != nil {
		return "", err
	}
	return n.Payload, nil
}

func onPostgres(t *testing.T, addr string) handle {
	t.Helper()
	db, err := sql.Open("pgx", servers.DSN(addr))
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	s, err := sqlstore.New(db, sqlstore.PostgreSQL)
	require.NoError(t, err)
	return handle{s, sqlstore.NewListener(db, waits)}
}

func onRedis(t *testing.T, addrs ...string) handle {
	t.Helper()
	var client redis.UniversalClient
	if len(addrs) > 1 {
		client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ContextTimeoutEnabled: true})
	} else {
		client = redis.NewClient(&redis.Options{Addr: addrs[0], ContextTimeoutEnabled: true})
	}
	t.Cleanup(func() { _ = client.Close() })
	s, err := redisstore.Open(t.Context(), client, redisstore.Options{})
	require.NoError(t, err)
	return handle{s, s}
}

func onSQLite(t *testing.T, path string) handle {
	t.Helper()
	s, err := sqlite.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return handle{store: s}
}

// cluster starts three masters that share the slots, and returns where they are.
func cluster(t *testing.T) (addrs []string) {
	var all []*redis.Client
	for i := range 3 {
		s := servers.StartRedis(t, "--save", "", "--appendonly", "no", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
		c := redis.NewClient(&redis.Options{Addr: s.Addr()})
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.ClusterAddSlotsRange(t.Context(), i*16384/3, (i+1)*16384/3-1).Err())
		require.NoError(t, c.Do(t.Context(), "cluster", "set-config-epoch", i+1).Err())
		if i > 0 {
			require.NoError(t, all[0].ClusterMeet(t.Context(), "127.0.0.1", fmt.Sprint(s.Port())).Err())
		}
		all, addrs = append(all, c), append(addrs, s.Addr())
	}
	for _, c := range all {
		require.Eventually(t, func() bool {
			info, err := c.ClusterInfo(t.Context()).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		}, time.Minute, 20*time.Millisecond)
	}
	return addrs
}

// A counted store counts what it is asked, and hides what else it can do.
type counted struct {
	store.Store
	claims, purges atomic.Int64
	largest        atomic.Int64 // that was purged at once
}

func (c *counted) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if q.Kind == "push" {
		c.claims.Add(1)
	}
	return c.Store.Claim(ctx, q, until)
}

func (c *counted) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	removed, err := c.Store.Purge(ctx, kind, before, n)
	if removed > 0 {
		c.purges.Add(1)
		c.largest.Store(max(c.largest.Load(), int64(removed)))
	}
	return removed, err
}

// A heard Waker tells when it listens.
type heard struct {
	authz.Waker
	listens chan struct{}
}

func (h heard) Listen(ctx context.Context, woke func(app string)) error {
	return h.Waker.Listen(ctx, func(app string) {
		select {
		case h.listens <- struct{}{}:
		default:
		}
		woke(app)
	})
}

// A log is written to by many.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// An app is a webhook that is down or takes what comes.
type app struct {
	*httptest.Server
	down    atomic.Bool
	arrived chan string // webhook-ids
}

func newApp(t *testing.T) *app {
	a := &app{arrived: make(chan string, 1000)}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if a.down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		a.arrived <- r.Header.Get(webhook.HeaderID)
	}))
	t.Cleanup(a.Close)
	return a
}

// next is what arrives within a time that is long for a machine with other things to do.
func (a *app) next(t *testing.T, within time.Duration) string {
	t.Helper()
	select {
	case id := <-a.arrived:
		return id
	case <-time.After(within):
		t.Fatalf("nothing arrives within %v", within)
		return ""
	}
}

// node makes a server of a deployment: all of one key. Without an app to push to, grants are polled.
func node(t *testing.T, h handle, a *app, change ...func(*authz.Config)) *authz.Server {
	t.Helper()
	c := authz.Config{
		Issuer: "https://social.example", Store: h.store, Waker: h.waker, Key: grant.NewSecret(strings.Repeat("k", 32)),
		Permit:   func(context.Context, grant.Access) error { return nil },
		Apps:     []authz.App{{ID: "bookbot", Secret: grant.NewSecret("book-secret"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Hour, Uses: 3, RedeemWithin: time.Hour}},
	}
	if a != nil {
		c.Apps[0].Webhook, c.AllowWebhooksTo = a.URL, []string{strings.TrimPrefix(a.URL, "http://")}
	}
	for _, f := range change {
		f(&c)
	}
	az, err := authz.New(c)
	require.NoError(t, err)
	return az
}

func run(t *testing.T, az *authz.Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = az.Run(ctx)
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop
}

var serial atomic.Int64

func emit(t *testing.T, az *authz.Server) authz.Issued {
	t.Helper()
	issued, err := az.Emit(t.Context(), mention())
	require.NoError(t, err)
	require.Len(t, issued, 1)
	return issued[0]
}

func mention() grant.Event {
	return grant.Event{ID: fmt.Sprint("m", serial.Add(1)), Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")}
}

var write = scope.MustParse("group:42/message.write")

// What one node issues another delivers: at once where there is a Waker, and with a twentieth of the looks.
func TestWaker(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) func() handle{
		"PostgreSQL": func(t *testing.T) func() handle {
			s := servers.StartPostgres(t)
			return func() handle { return onPostgres(t, s.Addr()) }
		},
		"Redis": func(t *testing.T) func() handle {
			s := servers.StartRedis(t, "--save", "", "--appendonly", "no")
			return func() handle { return onRedis(t, s.Addr()) }
		},
		"Redis Cluster": func(t *testing.T) func() handle {
			addrs := cluster(t)
			return func() handle { return onRedis(t, addrs...) }
		},
		"SQLite": func(t *testing.T) func() handle {
			path := filepath.Join(t.TempDir(), "db")
			return func() handle { return onSQLite(t, path) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			share := open(t)
			a := newApp(t)
			issues := node(t, share(), a)
			for _, wakes := range []bool{false, true} {
				h := share()
				count := &counted{Store: h.store}
				listener := heard{h.waker, make(chan struct{}, 1)}
				if wakes && h.waker == nil {
					continue
				}
				delivers := node(t, handle{store: count}, a, func(c *authz.Config) {
					if wakes {
						c.Waker = listener
					}
				})
				stop := run(t, delivers)
				if wakes {
					select {
					case <-listener.listens:
					case <-time.After(20 * time.Second):
						t.Fatal("nobody listens")
					}
				}
				var took []time.Duration
				for range 12 {
					_ = idle(t, 50*time.Millisecond+rand.N(300*time.Millisecond)) // at any time between two looks
					began := time.Now()
					g := emit(t, issues)
					require.Equal(t, g.ID, a.next(t, 4*time.Second), "sooner than by looking every five seconds")
					took = append(took, time.Since(began))
				}
				before, from := count.claims.Load(), time.Now()
				require.Equal(t, context.DeadlineExceeded, idle(t, 3*time.Second))
				looks := count.claims.Load() - before
				if wakes {
					require.LessOrEqual(t, looks, int64(2))
				}
				t.Logf("waker %v: p50 %v from Emit on one node to the webhook by another; idle: %.1f claims a second", wakes, median(took), float64(looks)/time.Since(from).Seconds())
				stop()
			}
		})
	}
}

// idle lets time pass, in which nothing may arrive.
func idle(t *testing.T, d time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
	return ctx.Err()
}

func median(all []time.Duration) time.Duration {
	for i := range all {
		for j := i; j > 0 && all[j] < all[j-1]; j-- {
			all[j], all[j-1] = all[j-1], all[j]
		}
	}
	return all[len(all)/2].Round(100 * time.Microsecond)
}

// A store that goes away in the middle costs nobody anything but time: calls fail with an error that names it, within
// their deadlines, Run goes on, and what was there before is there afterwards.
func TestStoreAway(t *testing.T) {
	for name, row := range map[string]struct {
		start func(t *testing.T) *servers.Server
		open  func(t *testing.T, addr string) handle
		says  string
	}{
		"PostgreSQL": {func(t *testing.T) *servers.Server { return servers.StartPostgres(t) }, onPostgres, "sqlstore: PostgreSQL: "},
		"Redis": {func(t *testing.T) *servers.Server {
			return servers.StartRedis(t, "--save", "", "--appendonly", "yes", "--appendfsync", "always")
		}, func(t *testing.T, addr string) handle { return onRedis(t, addr) }, "redisstore: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := row.start(t)
			proxy := servers.StartProxy(t, server.Addr())
			h := row.open(t, proxy.Addr())
			a := newApp(t)
			var said log
			var denies atomic.Bool
			az := node(t, h, a, func(c *authz.Config) {
				c.Log = slog.New(slog.NewTextHandler(&said, nil))
				c.Permit = func(context.Context, grant.Access) error {
					if denies.Load() {
						return grant.ErrDenied
					}
					return nil
				}
			})
			run(t, az)
			use := func(ctx context.Context, token grant.Secret) error {
				_, err := az.Use(ctx, authz.Call{Token: token.Reveal(), Want: write})
				return err
			}
			kept := emit(t, az)
			require.Equal(t, kept.ID, a.next(t, 20*time.Second))
			_, token, err := az.Engine().Redeem(t.Context(), "bookbot", kept.Code)
			require.NoError(t, err)
			require.NoError(t, use(t.Context(), token))
			a.down.Store(true)
			waiting := emit(t, az) // for an app that is down, too

			calls := map[string]func(ctx context.Context) error{
				"emit": func(ctx context.Context) error { _, err := az.Emit(ctx, mention()); return err },
				"use":  func(ctx context.Context) error { return use(ctx, token) },
				"redeem": func(ctx context.Context) error {
					_, _, err := az.Engine().Redeem(ctx, "bookbot", waiting.Code)
					return err
				},
				"grants": func(ctx context.Context) error { _, err := az.Engine().Grants(ctx, "zhang-san", "", true); return err },
				"ledger": func(ctx context.Context) error { _, err := az.Engine().Ledger(ctx, "zhang-san", "", 0); return err },
				"revoke": func(ctx context.Context) error { return az.Engine().Revoke(ctx, "zhang-san", waiting.ID) },
			}
			fail := func(within time.Duration, how func(what string, err error)) {
				t.Helper()
				for what, call := range calls {
					ctx, cancel := context.WithTimeout(t.Context(), within)
					began := time.Now()
					err := call(ctx)
					cancel()
					require.Error(t, err, what)
					require.ErrorContains(t, err, row.says, what)
					require.Less(t, time.Since(began), within+5*time.Second, what)
					require.NotContains(t, err.Error(), token.Reveal(), what)
					how(what, err)
				}
			}
			server.Kill()
			denies.Store(true)
			for range 3 {
				require.ErrorIs(t, use(t.Context(), token), grant.ErrDenied) // to be recorded when there is a store again
			}
			denies.Store(false)
			fail(20*time.Second, func(what string, err error) {
				require.NotErrorIs(t, err, context.DeadlineExceeded, "%s: it is known that nobody is there", what)
			})
			_ = idle(t, 4*time.Second)
			a.down.Store(false)
			before := strings.Count(said.String(), "\n")
			require.Less(t, before, 25, said.String()) // four loops, one line each ten seconds, and the app that was down
			require.Contains(t, said.String(), row.says)
			server.Start()
			require.Equal(t, waiting.ID, a.next(t, 60*time.Second))
			require.Eventually(t, func() bool {
				entries, err := az.Engine().Ledger(t.Context(), "zhang-san", "", 0)
				if err != nil {
					return false
				}
				refused := 0
				for _, e := range entries {
					if e.What == "refused" {
						refused += e.Count
					}
				}
				return refused == 3
			}, 30*time.Second, 50*time.Millisecond, "the refusals of the time without a store")
			require.Eventually(t, func() bool { return strings.Count(said.String(), "well again") >= 3 }, 30*time.Second, 50*time.Millisecond, "deliveries, refusals, waker: %s", &said)
			require.NoError(t, use(t.Context(), token))
			require.NoError(t, use(t.Context(), token))
			require.ErrorIs(t, use(t.Context(), token), grant.ErrUsedUp)

			// One that hangs: nobody waits for longer than they said.
			proxy.Set(servers.Hang())
			fail(300*time.Millisecond, func(what string, err error) {
				require.True(t, errors.Is(err, context.DeadlineExceeded), "%s: %v", what, err)
			})
			proxy.Set(servers.Fault{})
			proxy.Drop()
			require.Eventually(t, func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := az.Engine().Ledger(ctx, "zhang-san", "", 0)
				return err == nil
			}, 30*time.Second, 50*time.Millisecond)
			g := emit(t, az)
			for id := ""; id != g.ID; { // and what was emitted while nobody answered
				id = a.next(t, 60*time.Second)
			}
			_, _, err = az.Engine().Redeem(t.Context(), "bookbot", g.Code)
			require.NoError(t, err)
		})
	}
}

// Package stores gives tests every store of ours, as several nodes see it.
//
// The laws:
//
//  1. What is made is empty and its test's own: a memory, a file, a schema, a prefix. It is gone when the test ends.
//  2. Each node has a handle of its own, opened as another process would open it. Only the memory store is one.
//  3. On a machine without a server the tests of its store skip, by name. Under CI=true they fail instead.
//
// PostgreSQL is the server that BEHEST_POSTGRES names, else one at 127.0.0.1:5432 whose user postgres needs no
// password for the database test. Redis is started.
//
// Use:
//
//	stores.Each(t, func(t *testing.T, s stores.Maker) {
//		node := s.New(t)
//		one, two := node(), node()
//	})
package stores

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
	"github.com/behest-go/behest/store/sqlite"
	"github.com/behest-go/behest/store/sqlstore"
)

// A Maker makes stores of one sort.
type Maker struct {
	// Name is memory, sqlite, postgresql, redis or cluster.
	Name string
	// New makes an empty store, and returns what opens it, once for each node.
	New func(tb testing.TB) (node func() store.Store)
}

// Some is n for the memory store, and a tenth of it, at least one, for the others: how often to do again what takes a
// database its time.
func (m Maker) Some(n int) int {
	if m.Name == "memory" {
		return n
	}
	return max(n/10, 1)
}

// Each runs f as a subtest for each of memory, sqlite, postgresql and redis.
func Each(t *testing.T, f func(t *testing.T, s Maker)) {
	for _, sort := range []struct {
		name string
		open func(testing.TB) Maker
	}{{"memory", Memory}, {"sqlite", SQLite}, {"postgresql", PostgreSQL}, {"redis", Redis}} {
		t.Run(sort.name, func(t *testing.T) { f(t, sort.open(t)) })
	}
}

// Everywhere is Each and, as the last subtest, a cluster, which takes some seconds to start: for what must be shown of
// every store there is.
func Everywhere(t *testing.T, f func(t *testing.T, s Maker)) {
	Each(t, f)
	t.Run("cluster", func(t *testing.T) { f(t, Cluster(t)) })
}

// Memory makes stores that all nodes share as one value, for they live in this process.
func Memory(testing.TB) Maker {
	return Maker{"memory", func(testing.TB) func() store.Store {
		m := store.NewMemory()
		return func() store.Store { return m }
	}}
}

// SQLite makes files that every node opens by itself.
func SQLite(testing.TB) Maker {
	return Maker{"sqlite", func(tb testing.TB) func() store.Store {
		path := filepath.Join(tb.TempDir(), "behest.db")
		return func() store.Store {
			tb.Helper()
			s, err := sqlite.Open(path)
			check(tb, err)
			tb.Cleanup(func() {
				if err := s.Close(); err != nil {
					tb.Error(err)
				}
			})
			return s
		}
	}}
}

const defaultDSN = "postgres://postgres@127.0.0.1:5432/test?sslmode=disable"

// PostgreSQL makes schemas in one database; every node has a pool of 12 connections.
func PostgreSQL(tb testing.TB) Maker {
	tb.Helper()
	dsn := os.Getenv("BEHEST_POSTGRES")
	if dsn == "" {
		dsn = defaultDSN
	}
	admin := pool(tb, dsn, "public")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := admin.PingContext(ctx); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
		}
		tb.Skipf("no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
	}
	var schemas atomic.Int64
	return Maker{"postgresql", func(tb testing.TB) func() store.Store {
		tb.Helper()
		name := fmt.Sprintf("behest_stores_%d_%d_%d", os.Getpid(), time.Now().UnixNano(), schemas.Add(1))
		_, err := admin.Exec("CREATE SCHEMA " + name)
		check(tb, err)
		tb.Cleanup(func() {
			if _, err := admin.Exec("SET client_min_messages = error; DROP SCHEMA " + name + " CASCADE"); err != nil {
				tb.Error(err)
			}
		})
		return func() store.Store {
			tb.Helper()
			db := pool(tb, dsn, name)
			check(tb, sqlstore.Migrate(context.Background(), db, sqlstore.PostgreSQL))
			s, err := sqlstore.New(db, sqlstore.PostgreSQL)
			check(tb, err)
			return s
		}
	}}
}

func pool(tb testing.TB, dsn, schema string) *sql.DB {
	tb.Helper()
	config, err := pgx.ParseConfig(dsn)
	check(tb, err)
	config.RuntimeParams["search_path"] = schema
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(12)
	db.SetMaxIdleConns(12)
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// Redis starts a server that keeps nothing on disk, and makes prefixes there; every node has a client.
func Redis(tb testing.TB) Maker {
	tb.Helper()
	server := servers.StartRedis(tb, "--save", "", "--appendonly", "no")
	return prefixes("redis", func() redis.UniversalClient { return redis.NewClient(&redis.Options{Addr: server.Addr()}) })
}

// Cluster starts three masters that share the slots of a Redis Cluster. That takes some seconds.
func Cluster(tb testing.TB) Maker {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const slots = 16384
	var addrs []string
	for i := range 3 {
		server := servers.StartRedis(tb, "--save", "", "--appendonly", "no", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "5000")
		addrs = append(addrs, server.Addr())
		c := redis.NewClient(&redis.Options{Addr: server.Addr()})
		defer func() { _ = c.Close() }()
		check(tb, c.ClusterAddSlotsRange(ctx, i*slots/3, (i+1)*slots/3-1).Err())
		check(tb, c.Do(ctx, "cluster", "set-config-epoch", i+1).Err())
		host, port, err := net.SplitHostPort(addrs[0])
		check(tb, err)
		if i > 0 {
			check(tb, c.ClusterMeet(ctx, host, port).Err())
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer func() { _ = c.Close() }()
		for {
			info, err := c.ClusterInfo(ctx).Result()
			if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") && strings.Contains(info, "cluster_slots_ok:16384") {
				break
			}
			select {
			case <-ctx.Done():
				tb.Fatalf("the cluster does not come up: %s, %v", info, err)
			case <-tick.C:
			}
		}
	}
	return prefixes("cluster", func() redis.UniversalClient { return redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}) })
}

func prefixes(name string, client func() redis.UniversalClient) Maker {
	var made atomic.Int64
	return Maker{name, func(tb testing.TB) func() store.Store {
		prefix := fmt.Sprint("stores", made.Add(1))
		return func() store.Store {
			tb.Helper()
			c := client()
			tb.Cleanup(func() { _ = c.Close() })
			s, err := redisstore.Open(context.Background(), c, redisstore.Options{Prefix: prefix})
			check(tb, err)
			return s
		}
	}}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

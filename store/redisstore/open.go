package redisstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Open returns a Store on a client of a single Redis (also one behind Sentinel) or of a Redis Cluster. It asks every
// master: one that is older than 6.2, a replica, or on the other side of a cluster's border is an error; one that would
// lose what it acknowledged, by eviction or because it keeps nothing on disk, is a warning to opts.Logger. A client that
// would read from replicas, or spread keys over servers by itself (Ring), is an error too.
//
// Scripts are sent once, by the first call that needs one: whenever a server does not know one (new, restarted,
// SCRIPT FLUSH), the call that finds out takes a second round trip.
func Open(ctx context.Context, client redis.UniversalClient, opts Options) (*Store, error) {
	s := &Store{client: client, prefix: opts.Prefix, log: opts.Logger}
	if s.prefix == "" {
		s.prefix = "behest"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(s.prefix) > 64 || strings.ContainsAny(s.prefix, "{}") {
		return nil, fail("open", fmt.Errorf("prefix %.70q: want 1 to 64 bytes without braces", s.prefix))
	}
	var err error
	switch c := client.(type) {
	case nil:
		err = errors.New("no client")
	case *redis.Ring:
		err = errors.New("a Ring moves keys when a server is away: use a cluster")
	case *redis.ClusterClient:
		o := c.Options()
		s.deadline = o.ContextTimeoutEnabled
		if o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			err = errors.New("this client reads from replicas, which may not know yet what was acknowledged")
			break
		}
		var mu sync.Mutex
		var all []error
		if over := s.wait(ctx, func() {
			failed := c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
				err := s.examine(ctx, node, true)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, err)
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, s.cause(ctx, failed))
		}); over != nil {
			err = over
			break
		}
		err = errors.Join(all...)
	case *redis.Client:
		s.deadline = c.Options().ContextTimeoutEnabled
		err = s.examine(ctx, c, false)
	default:
		err = s.examine(ctx, client, false)
	}
	if err != nil {
		return nil, fail("open", err)
	}
	return s, nil
}

// examine looks at one server.
func (s *Store) examine(ctx context.Context, c redis.UniversalClient, cluster bool) error {
	about := redis.NewStringCmd(ctx, "info")
	saves := redis.NewMapStringStringCmd(ctx, "config", "get", "save")
	syncs := redis.NewMapStringStringCmd(ctx, "config", "get", "appendfsync")
	cuts := redis.NewMapStringStringCmd(ctx, "config", "get", "aof-load-truncated")
	if err := s.wait(ctx, func() {
		p := c.Pipeline()
		for _, cmd := range []redis.Cmder{about, saves, syncs, cuts} {
			_ = p.Process(ctx, cmd)
		}
		_, _ = p.Exec(ctx)
	}); err != nil {
		return err
	}
	if err := about.Err(); err != nil {
		return s.cause(ctx, err)
	}
	info := make(map[string]string)
	for line := range strings.Lines(about.Val()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	who := "server at port " + info["tcp_port"]
	version := info["redis_version"]
	if major, minor := parseVersion(version); major < 6 || major == 6 && minor < 2 {
		return fmt.Errorf("%s: version %q, want 6.2 or later", who, version)
	}
	if info["role"] == "slave" {
		return fmt.Errorf("%s is a replica", who)
	}
	if clustered := info["cluster_enabled"] == "1"; clustered && !cluster {
		return fmt.Errorf("%s is a node of a cluster: use a ClusterClient", who)
	}
	if policy := info["maxmemory_policy"]; strings.HasPrefix(policy, "allkeys-") {
		s.log.WarnContext(ctx, "redisstore: Redis may evict records: set maxmemory-policy noeviction", "server", who, "policy", policy)
	}
	save, known := saves.Val()["save"]
	switch {
	case info["aof_enabled"] == "1":
		if sync, ok := syncs.Val()["appendfsync"]; ok && sync != "always" {
			s.log.InfoContext(ctx, "redisstore: a crash of Redis may lose the last writes: appendfsync is not always", "server", who, "appendfsync", sync)
		}
		if cuts.Val()["aof-load-truncated"] == "yes" {
			s.log.WarnContext(ctx, "redisstore: a crash of Redis may leave half of a write, which the restart after the next carries out: set aof-load-truncated no", "server", who)
		}
	case known && save == "":
		s.log.WarnContext(ctx, "redisstore: Redis keeps nothing on disk: a restart forgets everything; set appendonly yes", "server", who)
	default:
		s.log.WarnContext(ctx, "redisstore: Redis keeps at most snapshots on disk: a crash loses all since the last; set appendonly yes", "server", who, "save", save)
	}
	return nil
}

func parseVersion(text string) (major, minor int) {
	first, rest, _ := strings.Cut(text, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, _ = strconv.Atoi(first)
	minor, _ = strconv.Atoi(second)
	return major, minor
}

package redisstore_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/store"
)

// BenchmarkUse is a whole use beside a script that only touches as many keys in the same way.
func BenchmarkUse(b *testing.B) {
	server := quiet(b)
	c := server.client()
	s := open(b, c, "bench")
	const accounts = 1000
	names := make([]string, accounts)
	for i := range names {
		names[i] = fmt.Sprintf("k3qz7m2v%08x", i)
		account(b, s, names[i], 1<<50)
	}
	var count atomic.Int64
	data := make([]byte, 120)
	bare := redis.NewScript(`redis.call('GET', KEYS[1]) redis.call('GET', KEYS[2]) redis.call('GET', KEYS[3])
		redis.call('DECR', KEYS[4]) redis.call('SET', KEYS[5], ARGV[1]) redis.call('ZADD', KEYS[6], 0, ARGV[2]) redis.call('ZADD', KEYS[7], 0, ARGV[2])
		return 1`)
	if err := bare.Load(background, c).Err(); err != nil {
		b.Fatal(err)
	}
	for i := range names {
		for _, k := range []string{"account", "here", "grant"} {
			c.Set(background, fmt.Sprintf("bare:{%02x}:%s:%s", i%256, k, names[i]), make([]byte, 100), 0)
		}
	}
	run := func(name string, parallel int, f func(i int64) error) {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := f(count.Add(1)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
	aUse := func(account int64) func(i int64) error {
		return func(i int64) error {
			name := names[(i*account)%accounts]
			out, err := s.Apply(background, now, use(name, fmt.Sprint(i)))
			if err == nil && !out.Applied() {
				err = fmt.Errorf("refused: %+v", out)
			}
			return err
		}
	}
	run("bare", 8, func(i int64) error {
		n := i % accounts
		tag, id := fmt.Sprintf("bare:{%02x}:", n%256), fmt.Sprint(names[n], ".", i)
		return bare.EvalSha(background, c, []string{
			tag + "account:" + names[n], tag + "here:" + names[n], tag + "grant:" + names[n], tag + "token:" + names[n], tag + "ledger:" + id, tag + "i:ledger", tag + "a:ledger",
		}, data, id).Err()
	})
	run("whole", 8, aUse(1))
	run("hot", 32, aUse(0))
}

func BenchmarkClaimIdle(b *testing.B) {
	server := quiet(b)
	s := open(b, server.client(), "bench")
	for i := range 1000 {
		apply(b, s, store.Put(store.Record{Kind: "task", ID: fmt.Sprintf("a%d.1", i), App: "x", Due: now.Add(time.Hour)}))
	}
	for name, q := range map[string]store.Query{"all": {}, "app": {App: "x"}, "without": {NotApps: []string{"x"}}} {
		b.Run(name, func(b *testing.B) {
			q.Kind, q.DueBy = "task", now
			for b.Loop() {
				if got, err := s.Claim(background, q, now.Add(time.Minute)); err != nil || len(got) > 0 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

func BenchmarkPageByApp(b *testing.B) {
	server := quiet(b)
	s := open(b, server.client(), "bench")
	for i := range 5000 {
		apply(b, s, store.Put(store.Record{Kind: "grant", ID: fmt.Sprintf("a%d.1", i), App: fmt.Sprint("app", i%5), Data: make([]byte, 200)}))
	}
	for b.Loop() {
		if got, err := s.List(background, store.Query{Kind: "grant", App: "app3"}); err != nil || len(got) != 100 {
			b.Fatal(len(got), err)
		}
	}
}

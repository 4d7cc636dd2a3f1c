package redisstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
)

// A token of three uses, spent once. (Compiled and not run, since it needs a server; without Redis on this port it would say why.)
func ExampleStore_Apply() {
	ctx := context.Background()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
	defer client.Close()
	s, err := redisstore.Open(ctx, client, redisstore.Options{Logger: slog.Default()})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	token := store.Record{Left: 3, NotAfter: now.Add(10 * time.Minute)}
	out, err := s.Apply(ctx, now, []store.Op{store.Spend("token", "a1.t7", 1, &token)})
	if err != nil {
		fmt.Println(err) // it may have happened
		return
	}
	fmt.Println(out.Applied(), out.Left)
}

// A cluster is the same with another client. (Compiled and not run.)
func ExampleOpen_cluster() {
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"}, ContextTimeoutEnabled: true})
	defer client.Close()
	s, err := redisstore.Open(context.Background(), client, redisstore.Options{Prefix: "social"})
	fmt.Println(s != nil, err)
}

// A node hears of what another has put that is due. Package authz does this by itself for a Store that it is given.
// (Compiled and not run.)
func ExampleStore_Listen() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	defer client.Close()
	s, err := redisstore.Open(ctx, client, redisstore.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = s.Listen(ctx, func(app string) { fmt.Printf("look for what is due for %q\n", app) })
	fmt.Println(err) // why it does not listen any more
}

// A server that is away is an error that says which store and what; nothing is assumed in its place.
func ExampleOpen() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	s, err := redisstore.Open(context.Background(), client, redisstore.Options{})
	fmt.Println(s == nil, strings.HasPrefix(err.Error(), "redisstore: "))
	// Output:
	// true true
}

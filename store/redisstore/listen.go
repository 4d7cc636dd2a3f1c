package redisstore

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/store"
)

// listenPing is for how long a connection may be silent before it must show that it is alive, and again until it is
// given up.
const listenPing = 10 * time.Second

// channel is where an Apply publishes the apps of what it puts that is due.
func (s *Store) channel() string { return s.prefix + ":due" }

// Listen calls woke with "" once the server has said that it listens, and then, for each record that an Apply of any
// process puts and that is due by then, with its App. It returns an error when ctx is done or the connection fails:
// what is put until it is called again is not told of. It takes one connection beside the client's pool. woke must not
// block. A Store is so what package authz calls a Waker.
func (s *Store) Listen(ctx context.Context, woke func(app string)) error {
	if err := ctx.Err(); err != nil {
		return fail("listen", err)
	}
	sub := s.client.Subscribe(ctx, s.channel())
	defer func() { _ = sub.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() }) // go-redis waits for bytes, whatever ctx says
	defer stop()
	for silent := false; ; {
		got, err := sub.ReceiveTimeout(ctx, listenPing)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() && !silent {
			silent = true
			if err = sub.Ping(ctx); err == nil {
				continue
			}
		}
		if over := ctx.Err(); over != nil {
			return fail("listen", over)
		}
		if err != nil {
			return fail("listen", err)
		}
		silent = false
		switch got := got.(type) {
		case *redis.Subscription:
			woke("")
		case *redis.Message:
			woke(got.Payload)
		}
	}
}

// announce adds whom to tell of what ops put that is due now: the channel and the apps, after everything else.
func (s *Store) announce(args []string, now stamp, ops []store.Op) []string {
	told := false
	for i := range ops {
		r := &ops[i].Record
		if due := stampOf(r.Due); ops[i].Verb != store.VerbPut || due == 0 || due > now {
			continue
		}
		if !told {
			told = true
			args = append(args, s.channel())
		}
		args = append(args, r.App)
	}
	return args
}

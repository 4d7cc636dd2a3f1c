package redisstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/store"
)

// Options say how a Store uses its Redis. The zero Options are ready for use.
type Options struct {
	// Prefix comes first in the name of every key, so that several stores and other programs can share a server: 1 to
	// 64 bytes without braces. Empty means "behest".
	Prefix string
	// Logger hears of settings under which the server may forget what it acknowledged, and of damaged records that a
	// Claim went around. Nil means nobody does.
	Logger *slog.Logger
}

// A Store is a [store.Store] in Redis. Make it with [Open]; it is safe for concurrent use. It has no goroutines and
// nothing to close: the client is the caller's. (A call with a deadline, on a client without ContextTimeoutEnabled,
// leaves at its deadline; the command ends by the client's own ReadTimeout.)
type Store struct {
	client   redis.UniversalClient
	prefix   string
	log      *slog.Logger
	deadline bool // the client itself heeds a context's deadline
}

var _ store.Store = (*Store)(nil)

// buckets is the number of hash tags. It is part of the format.
const buckets = 256

// A bucket of an aggregate is where it is: a hash tag, and so a slot of Redis Cluster.
func bucketOf(aggregate string) int {
	h := fnv.New32a()
	h.Write([]byte(aggregate))
	sum := h.Sum32()
	return int((sum ^ sum>>8 ^ sum>>16 ^ sum>>24) % buckets)
}

// Letters of the indexes of a kind, in the order in which scripts get them.
const indexes = "iadex"

const (
	byID     = 'i' // IDs, in order
	byApp    = 'a' // app and ID, in order
	byDue    = 'd' // IDs, by Due
	byAppDue = 'e' // app, Due and ID, in order
	byEnd    = 'x' // IDs, by NotAfter
)

// space is the part of a key in front of the letter.
func (s *Store) space(bucket int) string {
	const hex = "0123456789abcdef"
	return s.prefix + ":{" + string([]byte{hex[bucket>>4], hex[bucket&15]}) + "}:"
}

func recordKey(space, kind, id string) string { return space + "r:" + escape(kind) + ":" + id }
func indexKey(space string, letter byte, kind string) string {
	return space + string([]byte{letter, ':'}) + escape(kind)
}

// escape keeps a kind from looking like a kind and the beginning of an ID.
func escape(kind string) string {
	if !strings.ContainsAny(kind, "%:") {
		return kind
	}
	return strings.NewReplacer("%", "%25", ":", "%3A").Replace(kind)
}

// A script is one of the Lua programs, by its name on the server.
type script struct {
	source, sha string
	writes      bool
}

func newScript(source string, writes bool) script {
	return script{source, redis.NewScript(source).Hash(), writes}
}

var (
	//go:embed apply.lua
	applySource string
	//go:embed get.lua
	getSource string
	//go:embed due.lua
	dueSource string
	//go:embed lease.lua
	leaseSource string
	//go:embed purge.lua
	purgeSource string

	applyScript = newScript(applySource, true)
	getScript   = newScript(getSource, false)
	dueScript   = newScript(dueSource, false)
	leaseScript = newScript(leaseSource, true)
	purgeScript = newScript(purgeSource, true)
)

// A call is one run of a script.
type call struct {
	script script
	keys   []string
	args   []string
}

// A command that writes must not be sent again by the client when the answer does not arrive: it may have been carried
// out.
type command struct {
	*redis.Cmd
	writes bool
}

// NoRetry is what go-redis asks a command before it sends it again.
func (c command) NoRetry() bool { return c.writes }

func (c *call) command(ctx context.Context, verb, script string) command {
	args := make([]any, 0, 3+len(c.keys)+len(c.args))
	args = append(args, verb, script, len(c.keys))
	for _, k := range c.keys {
		args = append(args, k)
	}
	for _, a := range c.args {
		args = append(args, a)
	}
	return command{redis.NewCmd(ctx, args...), c.script.writes}
}

// eval runs a script, in one round trip once the server knows it.
func (s *Store) eval(ctx context.Context, c *call) (any, error) {
	cmd := c.command(ctx, "evalsha", c.script.sha)
	if err := s.wait(ctx, func() { _ = s.client.Process(ctx, cmd) }); err != nil {
		return nil, err
	}
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") { // so it did not run
		cmd = c.command(ctx, "eval", c.script.source)
		if err := s.wait(ctx, func() { _ = s.client.Process(ctx, cmd) }); err != nil {
			return nil, err
		}
	}
	return cmd.Val(), s.cause(ctx, cmd.Err())
}

// evalAll runs scripts in one pipeline. An answer is an error if its script failed.
func (s *Store) evalAll(ctx context.Context, calls []call) ([]any, error) {
	if len(calls) == 0 {
		return nil, nil
	}
	cmds := make([]redis.Cmder, len(calls))
	for i := range calls {
		cmds[i] = calls[i].command(ctx, "evalsha", calls[i].script.sha)
	}
	if err := s.pipe(ctx, cmds); err != nil {
		return nil, err
	}
	var again []redis.Cmder
	for i := range calls {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") {
			cmds[i] = calls[i].command(ctx, "eval", calls[i].script.source)
			again = append(again, cmds[i])
		}
	}
	if len(again) > 0 {
		if err := s.pipe(ctx, again); err != nil {
			return nil, err
		}
	}
	out := make([]any, len(calls))
	for i := range cmds {
		if err := cmds[i].Err(); err != nil {
			out[i] = s.cause(ctx, err)
		} else {
			out[i] = cmds[i].(command).Val()
		}
	}
	return out, nil
}

// pipe sends commands together. Its error is that of the context; each command has its own.
func (s *Store) pipe(ctx context.Context, cmds []redis.Cmder) error {
	return s.wait(ctx, func() {
		p := s.client.Pipeline()
		for _, cmd := range cmds {
			_ = p.Process(ctx, cmd)
		}
		_, _ = p.Exec(ctx)
	})
}

// wait runs do, and leaves at the context's deadline. A context that is cancelled in the middle does not make it
// leave: the answer is worth more than the moment.
func (s *Store) wait(ctx context.Context, do func()) error {
	if _, ok := ctx.Deadline(); !ok || s.deadline {
		do()
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	if err := ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer from Redis: %w", err)
	}
	<-done
	return nil
}

// cause makes of a socket's timeout what it is when the context's deadline was its cause.
func (s *Store) cause(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if over := ctx.Err(); over != nil {
		return fmt.Errorf("%w (%v)", over, err)
	}
	if at, ok := ctx.Deadline(); ok && s.deadline && !time.Now().Before(at) {
		return fmt.Errorf("%w (%v)", context.DeadlineExceeded, err)
	}
	return err
}

// fail says which store and what.
func fail(what string, err error) error { return fmt.Errorf("redisstore: %s: %w", what, err) }

// Get implements [store.Store]: one command for IDs of one aggregate, one round trip for any.
func (s *Store) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, fail("get", err)
	}
	if len(ids) == 0 {
		return nil, nil
	}
	found, err := s.fetch(ctx, kind, ids, 0, "")
	if err != nil {
		return nil, fail("get", err)
	}
	var out []store.Record
	for _, r := range found {
		if r.Version != 0 {
			out = append(out, r)
		}
	}
	return out, nil
}

// fetch reads records in the order of ids, with a Version of 0 where there is none. With the letter of an index that
// listed them (under a prefix of members), one that is gone must be gone from there.
func (s *Store) fetch(ctx context.Context, kind string, ids []string, letter byte, member string) ([]store.Record, error) {
	out := make([]store.Record, len(ids))
	var places [buckets][]int
	for i, id := range ids {
		b := bucketOf(store.Aggregate(id))
		places[b] = append(places[b], i)
	}
	var calls []call
	var of [][]int
	for b, at := range places {
		if len(at) == 0 {
			continue
		}
		c := call{script: getScript}
		space := s.space(b)
		for _, i := range at {
			c.keys = append(c.keys, recordKey(space, kind, ids[i]))
			if letter != 0 {
				c.args = append(c.args, member+ids[i])
			}
		}
		if letter != 0 {
			c.keys = append(c.keys, indexKey(space, letter, kind))
		}
		calls, of = append(calls, c), append(of, at)
	}
	answers, err := s.evalAll(ctx, calls)
	if err != nil {
		return nil, err
	}
	for n, answer := range answers {
		values, err := list(answer)
		if err != nil {
			return nil, err
		}
		if len(values) != len(of[n]) {
			return nil, fmt.Errorf("%d values for %d keys", len(values), len(of[n]))
		}
		for j, i := range of[n] {
			value, there := values[j].(string)
			if !there {
				continue
			}
			if out[i], err = parse(kind, ids[i], value); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func list(answer any) ([]any, error) {
	switch a := answer.(type) {
	case error:
		return nil, a
	case []any:
		return a, nil
	}
	return nil, fmt.Errorf("an answer of type %T", answer)
}

// Apply implements [store.Store]: one command.
func (s *Store) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return store.Outcome{}, fail("apply", err)
	}
	if err := store.Validate(ops); err != nil {
		return store.Outcome{}, fail("apply", err)
	}
	c, err := s.applyCall(now, ops)
	if err != nil {
		return store.Outcome{}, fail("apply", err)
	}
	answer, err := s.eval(ctx, c)
	if err != nil {
		return store.Outcome{}, fail("apply", err)
	}
	text, _ := answer.(string)
	if i, bad := strings.CutPrefix(text, "!"); bad {
		if n, err := strconv.Atoi(i); err == nil && n >= 1 && n <= len(ops) {
			return store.Outcome{}, fail("apply", corrupt(ops[n-1].Record.Kind, ops[n-1].Record.ID))
		}
	}
	out, err := parseOutcome(text, len(ops))
	if err != nil {
		return store.Outcome{}, fail("apply", err)
	}
	return out, nil
}

func parseOutcome(text string, ops int) (out store.Outcome, err error) {
	fields := strings.Split(text, " ")
	if len(fields) != 4 {
		return out, fmt.Errorf("an answer of %q", text)
	}
	reason, err1 := strconv.ParseUint(fields[0], 10, 8)
	op, err2 := strconv.Atoi(fields[1])
	version, err3 := strconv.ParseUint(fields[2], 10, 64)
	left, err4 := strconv.ParseInt(fields[3], 10, 64)
	if err := errors.Join(err1, err2, err3, err4); err != nil || op >= ops {
		return out, fmt.Errorf("an answer of %q", text)
	}
	return store.Outcome{Reason: store.Reason(reason), Op: op, Version: version, Left: left}, nil
}

// applyCall packs ops for apply.lua. Everything in it is a copy.
func (s *Store) applyCall(now time.Time, ops []store.Op) (*call, error) {
	space := s.space(bucketOf(store.Aggregate(ops[0].Record.ID)))
	c := &call{script: applyScript, keys: make([]string, len(ops), len(ops)+10), args: make([]string, 0, 2+9*len(ops))}
	c.args = append(c.args, clamp(now).digits(), strconv.Itoa(len(ops)))
	var kinds []string // of which the indexes are in keys, five each
	at := func(kind string) string {
		for i, k := range kinds {
			if k == kind {
				return strconv.Itoa(len(ops) + 1 + i*len(indexes))
			}
		}
		kinds = append(kinds, kind)
		for _, letter := range []byte(indexes) {
			c.keys = append(c.keys, indexKey(space, letter, kind))
		}
		return strconv.Itoa(len(c.keys) - len(indexes) + 1)
	}
	write := func(r *store.Record) error {
		if err := keepable(r); err != nil {
			return err
		}
		c.args = append(c.args, digits(r.Left), rest(r), stampOf(r.Due).score(), stampOf(r.NotAfter).score(), at(r.Kind), strings.Clone(r.ID), appKey(r.App))
		return nil
	}
	for i := range ops {
		op := &ops[i]
		r := &op.Record
		c.keys[i] = recordKey(space, r.Kind, r.ID)
		var err error
		switch {
		case op.Verb == store.VerbPut:
			c.args = append(c.args, "p", version(r.Version))
			err = write(r)
		case op.Verb == store.VerbDelete:
			c.args = append(c.args, "d", version(r.Version), at(r.Kind), strings.Clone(r.ID))
		case op.Verb == store.VerbCheck:
			c.args = append(c.args, "c", version(r.Version))
		case op.Init:
			c.args = append(c.args, "i", digits(op.N))
			err = write(r)
		default:
			c.args = append(c.args, "s", digits(op.N))
		}
		if err != nil {
			return nil, err
		}
	}
	c.args = s.announce(c.args, clamp(now), ops)
	return c, nil
}

package outage

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
)

// now is the time of all calls.
var now = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

const plenty = int64(1) << 40

// crowd is how many call at once.
const crowd = 12

// Cuts cuts the connection of the node through, which goes through the proxy p, in the middle of its requests and of the
// answers to them: at every stride-th byte of an answer, every fifth of those of a request, and at each of the last 16.
// It also lets answers come late, and never. What has happened it asks the node direct. Errors of the node through begin
// with name; its IDs are on the wire as they are, and nobody else uses it.
func Cuts(ctx context.Context, name string, p *servers.Proxy, through, direct store.Store, stride int) (Figures, error) {
	c := &cuts{name: name, p: p, through: through, direct: direct, stride: stride, times: map[string]int{}}
	if _, err := c.apply(ctx, direct, store.Put(store.Record{Kind: "token", ID: "cut.t", Left: plenty})); err != nil {
		return Figures{}, err
	}
	for _, step := range []func(context.Context) error{c.answers, c.requests, c.crowds, c.late, c.reads, c.claims, c.again} {
		if err := step(ctx); err != nil {
			return c.Figures, fmt.Errorf("outage: %w", err)
		}
	}
	return c.Figures, nil
}

type cuts struct {
	Figures
	name            string
	p               *servers.Proxy
	through, direct store.Store
	stride          int
	n               int
	times           map[string]int // how often each entry was written, when that was looked at
}

func (c *cuts) apply(ctx context.Context, s store.Store, ops ...store.Op) (store.Outcome, error) {
	out, err := s.Apply(ctx, now, ops)
	if err == nil && !out.Applied() {
		err = fmt.Errorf("refused: %+v", out)
	}
	return out, err
}

// use is a write that counts how often it is carried out: by what is left, and by the version of the entry.
func (c *cuts) use() (id string, ops []store.Op) {
	c.n++
	id = fmt.Sprintf("cut.entry%05d", c.n)
	return id, []store.Op{
		store.Check("revocation", "cut.all", 0),
		store.Spend("token", "cut.t", 1, nil),
		store.Put(store.Record{Kind: "ledger", ID: id, Version: store.AnyVersion, Owner: "li", App: "bookbot", Data: make([]byte, 100)}),
	}
}

// happened is how often.
func (c *cuts) happened(ctx context.Context, id string) (int, error) {
	got, err := c.direct.Get(ctx, "ledger", id)
	if err != nil {
		return 0, err
	}
	n := 0
	if len(got) == 1 {
		n = int(got[0].Version)
	}
	if n > 1 {
		return n, fmt.Errorf("%s: %w", id, errTwice)
	}
	return n, nil
}

// harmed makes a call that suffers f, and says what came of it.
func (c *cuts) harmed(ctx context.Context, f servers.Fault, limit time.Duration) (id string, called error, err error) {
	id, ops := c.use()
	c.p.Once(id, f)
	before := c.p.Harmed().Requests
	call, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	_, called = c.apply(call, c.through, ops...)
	switch took := time.Since(began); {
	case took > limit+slack:
		err = fmt.Errorf("%s took %v, its deadline was %v: %v", id, took, limit, called)
	case c.p.Harmed().Requests != before+1:
		err = fmt.Errorf("%s was harmed %d times: %v", id, c.p.Harmed().Requests-before, called)
	case called != nil && !strings.Contains(called.Error(), c.name+"apply"):
		err = fmt.Errorf("%s: an error that does not name the store and the call: %w", id, called)
	case called != nil:
		c.Unanswered++
	default:
		c.Acknowledged++
	}
	return id, called, err
}

// well makes a call that suffers nothing: the node has got over what was before. A connection may have been cut while
// nobody looked, behind a whole answer, and a write must not be sent again by itself: so there may be an error for each
// connection that was there.
func (c *cuts) well(ctx context.Context) (err error) {
	for range crowd + 4 {
		id, ops := c.use()
		if _, err = c.apply(ctx, c.through, ops...); err != nil {
			err = fmt.Errorf("%s, after the harm: %w", id, err)
			if !strings.Contains(err.Error(), c.name+"apply") {
				return err
			}
			c.Unanswered++
			continue
		}
		c.Acknowledged++
		n, err := c.happened(ctx, id)
		if err == nil && n != 1 {
			err = fmt.Errorf("%s was acknowledged and is lost", id)
		}
		c.times[id] = 1
		return err
	}
	return err
}

// next is the byte to cut at after this one, of so many.
func next(at, of, stride int) int {
	if at+stride >= of-16 {
		return at + 1
	}
	return at + stride
}

// answers: the server has done it, and the caller hears a part of that.
func (c *cuts) answers(ctx context.Context) error {
	if err := c.well(ctx); err != nil { // it is known how to say it now
		return err
	}
	for at := 0; ; {
		id, called, err := c.harmed(ctx, servers.CutAnswer(at), callTime)
		if err != nil {
			return err
		}
		n, err := c.happened(ctx, id)
		answer := c.p.Harmed().Answer
		switch {
		case err != nil:
			return err
		case n != 1:
			return fmt.Errorf("%s was answered and is lost", id)
		case at < answer && called == nil:
			return fmt.Errorf("%s: %d of %d bytes of an answer were taken for one", id, at, answer)
		case at >= answer && called != nil:
			return fmt.Errorf("%s: the whole answer: %w", id, called)
		}
		c.times[id] = n
		if at >= answer {
			break
		}
		if err := c.well(ctx); err != nil {
			return err
		}
		at = next(at, answer, c.stride)
	}
	return nil
}

// requests: the server gets a part.
func (c *cuts) requests(ctx context.Context) error {
	for at := 0; ; {
		id, called, err := c.harmed(ctx, servers.CutRequest(at), callTime)
		if err != nil {
			return err
		}
		request := c.p.Harmed().Request
		if at >= request {
			return c.well(ctx)
		}
		n, err := c.happened(ctx, id)
		switch {
		case err != nil:
			return err
		case called == nil:
			return fmt.Errorf("%s: nobody answered, and it is no error", id)
		case n != 0:
			return fmt.Errorf("%s: %d of %d bytes of a request were carried out", id, at, request)
		}
		c.times[id] = n
		at = next(at, request, 5*c.stride)
	}
}

// crowds: many call at once, for one aggregate, and a store may send them together.
func (c *cuts) crowds(ctx context.Context) error {
	const many = crowd
	ids, errs, ops := make([]string, many), make([]error, many), make([][]store.Op, many)
	for round := range 16 {
		for i := range many {
			ids[i], ops[i] = c.use()
		}
		var all sync.WaitGroup
		call := func(i int) {
			all.Go(func() {
				call, cancel := context.WithTimeout(ctx, callTime)
				defer cancel()
				_, errs[i] = c.apply(call, c.through, ops[i]...)
			})
		}
		before := c.p.Harmed().Requests
		c.p.Once(ids[0], servers.Delay(20*time.Millisecond)) // so that the others gather behind it
		call(0)
		if !servers.Eventually(ctx, nil, func() bool { return c.p.Harmed().Requests > before }) {
			return ctx.Err()
		}
		f := servers.CutAnswer(round * 5)
		if round%4 == 3 {
			f = servers.CutRequest(round * 50)
		}
		c.p.Once(ids[many/2], f)
		for i := range many - 1 {
			call(i + 1)
		}
		all.Wait()
		if c.p.Harmed().Requests != before+2 {
			return fmt.Errorf("%s was harmed %d times", ids[many/2], c.p.Harmed().Requests-before-1)
		}
		for i, id := range ids {
			n, err := c.happened(ctx, id)
			switch {
			case err != nil:
				return err
			case errs[i] == nil && n != 1:
				return fmt.Errorf("%s was acknowledged and is lost", id)
			case errs[i] != nil && !strings.Contains(errs[i].Error(), c.name+"apply"):
				return fmt.Errorf("%s: an error that does not name the store and the call: %w", id, errs[i])
			case errs[i] == nil:
				c.Acknowledged++
			default:
				c.Unanswered++
			}
			c.times[id] = n
		}
	}
	return c.well(ctx)
}

// late: the answer comes too late for the caller, or never.
func (c *cuts) late(ctx context.Context) error {
	for i := range 10 {
		f := servers.Hang()
		if i%2 == 0 {
			f = servers.Delay(200 * time.Millisecond)
		}
		id, called, err := c.harmed(ctx, f, 60*time.Millisecond)
		switch {
		case err != nil:
			return err
		case !errors.Is(called, context.DeadlineExceeded):
			return fmt.Errorf("%s has no answer in time, and the call says %v", id, called)
		}
		// It may happen yet, as long as the server has not heard that nobody waits.
		if err := c.well(ctx); err != nil {
			return err
		}
	}
	id, called, err := c.harmed(ctx, servers.Delay(50*time.Millisecond), callTime)
	if err != nil || called != nil {
		return fmt.Errorf("%s has an answer in time: %w", id, errors.Join(err, called))
	}
	return nil
}

// reads: what is read is the whole, or an error.
func (c *cuts) reads(ctx context.Context) error {
	const prefix = "read.pages."
	for i := range 20 {
		if _, err := c.apply(ctx, c.direct, store.Put(store.Record{Kind: "page", ID: fmt.Sprintf("%s%02d", prefix, i), Data: []byte(strings.Repeat("x", 30))})); err != nil {
			return err
		}
	}
	q := store.Query{Kind: "page", Prefix: prefix}
	want, err := c.direct.List(ctx, q)
	if err != nil {
		return err
	}
	ids := make([]string, len(want))
	for i := range want {
		ids[i] = want[i].ID
	}
	for what, read := range map[string]func(ctx context.Context) ([]store.Record, error){
		"list": func(ctx context.Context) ([]store.Record, error) { return c.through.List(ctx, q) },
		"get":  func(ctx context.Context) ([]store.Record, error) { return c.through.Get(ctx, "page", ids...) },
	} {
		for at := 0; ; at += 60 * c.stride {
			c.p.Once(prefix, servers.CutAnswer(at))
			call, cancel := context.WithTimeout(ctx, callTime)
			got, err := read(call)
			cancel()
			switch {
			case err != nil && !strings.Contains(err.Error(), c.name+what):
				return fmt.Errorf("%s: an error that does not name the store and the call: %w", what, err)
			case err == nil && !reflect.DeepEqual(got, want):
				return fmt.Errorf("%s: cut after %d bytes, %d records of %d are taken for all", what, at, len(got), len(want))
			}
			if at >= c.p.Harmed().Answer {
				if err != nil {
					return fmt.Errorf("%s: the whole answer: %w", what, err)
				}
				break
			}
		}
	}
	return nil
}

// claims: what a worker that heard nothing has leased, no other gets.
func (c *cuts) claims(ctx context.Context) error {
	harmed := false
	for i := range 10 {
		kind := fmt.Sprintf("task%d", i)
		if _, err := c.apply(ctx, c.direct, store.Put(store.Record{Kind: kind, ID: "claim.1", App: "claimant", Due: now})); err != nil {
			return err
		}
		q := store.Query{Kind: kind, App: "claimant", DueBy: now}
		// A store that looks before it leases says the ID when it leases.
		marker := []string{"claimant", "claim.1"}[i%2]
		before := c.p.Harmed().Requests
		c.p.Once(marker, servers.CutAnswer(i/2*20))
		call, cancel := context.WithTimeout(ctx, callTime)
		got, failed := c.through.Claim(call, q, now.Add(time.Minute))
		cancel()
		harmed = harmed || c.p.Harmed().Requests > before
		again, err := c.direct.Claim(ctx, q, now.Add(time.Hour))
		if err != nil {
			return err
		}
		if len(got)+len(again) > 1 || len(again) == 1 && again[0].Version > 2 {
			return fmt.Errorf("claim: %w: %+v, %v, %+v", errTwice, got, failed, again)
		}
		if failed != nil && !strings.Contains(failed.Error(), c.name+"claim") {
			return fmt.Errorf("claim: an error that does not name the store and the call: %w", failed)
		}
	}
	if !harmed {
		return errors.New("no claim was harmed")
	}
	return nil
}

// again looks at all of it once more: nothing has changed behind the callers' backs, and what is spent is what is written.
func (c *cuts) again(ctx context.Context) error {
	for i := range c.n {
		id := fmt.Sprintf("cut.entry%05d", i+1)
		n, err := c.happened(ctx, id)
		if err != nil {
			return err
		}
		if before, ok := c.times[id]; ok && before != n {
			return fmt.Errorf("%s: %w: %d times at first, now %d", id, errTwice, before, n)
		}
		c.Done += n
	}
	got, err := c.direct.Get(ctx, "token", "cut.t")
	if err != nil || len(got) != 1 {
		return fmt.Errorf("the token: %d records: %w", len(got), err)
	}
	if spent := plenty - got[0].Left; spent != int64(c.Done) {
		return fmt.Errorf("%w: %d uses are spent, and %d are written down", errTwice, spent, c.Done)
	}
	if c.Done > c.Acknowledged+c.Unanswered || c.Done < c.Acknowledged {
		return fmt.Errorf("%s: something came from nowhere, or is lost", c.Figures)
	}
	return nil
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	maxStories = 12  // shown at once
	maxEntries = 400 // attempts to deliver, kept for one account
	maxStreams = 32  // of one account
	lookAgain  = time.Second
	heartbeat  = 15 * time.Second
)

// A panel shows each account what happens underneath, of what concerns that account and nothing else. What it shows is
// behest's ledger, whichever process wrote it. authz.Config.Observe and this process's own doings wake the streams of
// pages at once; of other processes they hear by looking again each second. Only what no ledger has is kept here:
// attempts to deliver, and what the account's last operation came to.
type panel struct {
	mu      sync.Mutex
	boards  map[string]*board
	streams map[*stream]struct{}
}

type board struct {
	tries []grant.Entry // to deliver
	last  string        // the last operation, in words
}

type stream struct {
	account string
	wake    chan struct{}
}

func newPanel() *panel {
	return &panel{boards: map[string]*board{}, streams: map[*stream]struct{}{}}
}

// board is an account's. The lock is held.
func (p *panel) board(account string) *board {
	b := p.boards[account]
	if b == nil {
		b = &board{}
		p.boards[account] = b
	}
	return b
}

// observe does not block, and does not ask the engine: it is called in the middle of its work.
func (p *panel) observe(_ context.Context, e grant.Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.What == "delivered" || e.What == "undelivered" {
		b := p.board(e.Account)
		if b.tries = append(b.tries, e); len(b.tries) > maxEntries {
			b.tries = slices.Delete(b.tries, 0, len(b.tries)-maxEntries)
		}
	}
	p.wakeUp(e.Account)
}

// happened notes what the last operation came to: mostly nothing. By is the app's name if an app did it.
func (p *panel) happened(events []grant.Event, by string, issued int, err error) {
	names := make([]string, len(events))
	for i, ev := range events {
		names[i] = string(ev.Operation)
	}
	text := fmt.Sprintf("%s %s: ", strings.Join(names, ", "), events[0].ID)
	switch {
	case by != "" && issued == 0:
		text += "done through " + by + ", so it triggers nothing."
	case errors.Is(err, grant.ErrDenied):
		text += "a trigger matches, and the account may not do here what it allows, or has said no."
	case errors.Is(err, grant.ErrLimited):
		text += "a trigger matches, too often in this minute."
	case err != nil:
		text += "behest could not issue a grant."
	case issued == 0:
		text += "no trigger matches, nothing is issued."
	case issued == 1:
		text += "one trigger matches."
	default:
		text += fmt.Sprintf("%d triggers match.", issued)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.board(events[0].Account).last = text
	p.wakeUp(events[0].Account)
}

// wakeUp has the account's streams look again; empty: all. The lock is held.
func (p *panel) wakeUp(account string) {
	for s := range p.streams {
		if account == "" || s.account == account {
			select {
			case s.wake <- struct{}{}:
			default: // it will look anyway
			}
		}
	}
}

func (p *panel) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakeUp("")
}

func (p *panel) subscribe(account string) (*stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for s := range p.streams {
		if s.account == account {
			n++
		}
	}
	if n >= maxStreams {
		return nil, problem(http.StatusTooManyRequests, "too many pages are open")
	}
	s := &stream{account, make(chan struct{}, 1)}
	p.streams[s] = struct{}{}
	return s, nil
}

func (p *panel) unsubscribe(s *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.streams, s)
}

// seen returns a copy of what concerns the account.
func (p *panel) seen(account string) (tries []grant.Entry, last string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.board(account)
	return slices.Clone(b.tries), b.last
}

// A story is one grant from its cause to its end, as people are shown it. It holds neither code nor token.
type story struct {
	ID        string    `json:"id"`
	App       string    `json:"app"`
	AppName   string    `json:"app_name"`
	Trigger   string    `json:"trigger"`
	Operation string    `json:"operation"`
	Event     string    `json:"event"`
	Said      string    `json:"text,omitempty"`
	Domain    string    `json:"domain"`
	Actions   []string  `json:"actions"`
	Deliver   string    `json:"deliver"`
	State     string    `json:"state"` // pending, denied, issued, redeemed, used_up, revoked or expired
	IssuedAt  time.Time `json:"issued_at"`
	RedeemBy  time.Time `json:"redeem_by,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Life      string    `json:"for"`
	Uses      int       `json:"uses"` // -1: not counted
	Left      int       `json:"left"`
	Steps     []step    `json:"steps"`

	// Blocked is a grant that is alive and of no use, since its account may do nothing of it itself now.
	Blocked bool `json:"blocked,omitempty"`

	Where string `json:"-"` // the group's name
	Until int64  `json:"-"` // what the clock runs to, in milliseconds since 1970; 0: no clock
	Span  int64  `json:"-"` // how long the clock runs in all, in milliseconds
	Alive bool   `json:"-"`
}

// A step is an entry of the ledger, or a try to deliver.
type step struct {
	What   string    `json:"what"`
	At     time.Time `json:"at"`
	Scope  string    `json:"scope,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Count  int       `json:"count,omitempty"`
}

// stories returns the account's newest grants with what became of them.
func (s *site) stories(ctx context.Context, account string) ([]story, error) {
	grants, err := s.az.Engine().Grants(ctx, account, "", true)
	if err != nil {
		return nil, err
	}
	entries, err := s.az.Engine().Ledger(ctx, account, "", store.MaxPage)
	if err != nil {
		return nil, err
	}
	tries, _ := s.panel.seen(account)
	entries = append(entries, tries...)
	slices.SortStableFunc(entries, func(a, b grant.Entry) int { return a.At.Compare(b.At) })
	groups, err := s.chat.views(ctx, account)
	if err != nil {
		return nil, err
	}
	out := []story{}
	for _, g := range grants[:min(len(grants), maxStories)] {
		st := s.story(&g, entries)
		st.Where = place(groups, g.Domain)
		if st.Blocked, err = s.blocked(ctx, &g, st.State); err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// latest also has the refusals of the last moments, which are on their way to the ledger.
func (s *site) latest(ctx context.Context, account string) ([]story, error) {
	if err := s.az.Engine().Flush(ctx); err != nil {
		return nil, err
	}
	return s.stories(ctx, account)
}

func (s *site) blocked(ctx context.Context, g *grant.Grant, state string) (bool, error) {
	if state != "redeemed" {
		return false, nil
	}
	for _, action := range g.Actions {
		err := s.chat.may(ctx, g.Account, action, g.Domain)
		if err == nil {
			return false, nil
		}
		if no := (*webError)(nil); !errors.As(err, &no) {
			return false, err
		}
	}
	return true, nil
}

func (s *site) story(g *grant.Grant, entries []grant.Entry) story {
	st := story{ID: g.ID, App: g.App, AppName: s.names[g.App], Trigger: g.Trigger, Operation: string(g.Event.Operation), Event: g.Event.ID,
		Said: g.Event.Text, Domain: g.Domain.String(), Actions: g.Actions, Deliver: string(g.Deliver), State: g.State,
		IssuedAt: g.IssuedAt, RedeemBy: g.RedeemBy, NotAfter: g.NotAfter, Life: g.For.String(), Uses: g.Uses, Left: g.Uses,
		Steps: []step{}}
	if st.Said == "" {
		st.Said = g.Event.Target
	}
	for _, e := range entries {
		if e.Grant != g.ID {
			continue
		}
		last := len(st.Steps) - 1
		switch e.What {
		case "used":
			if st.Left > 0 {
				st.Left-- // what this chat's actions cost
			}
			// The same use again and again is one line.
			if n := slices.IndexFunc(st.Steps, func(s step) bool { return s.What == e.What && s.Scope == e.Scope }); n >= 0 {
				st.Steps[n].Count++
				st.Steps[n].At = e.At
				continue
			}
		case "refused":
			// And so is an app that tries again and again.
			if last >= 0 && st.Steps[last].What == e.What && st.Steps[last].Reason == e.Reason {
				st.Steps[last].Count += e.Count
				continue
			}
		}
		st.Steps = append(st.Steps, step{e.What, e.At, e.Scope, e.Reason, e.Count})
	}
	if st.State == "redeemed" && st.Left == 0 {
		st.State = "used_up"
	}
	// A code that the app did not come for, and a token that lived its life, have both expired.
	switch st.State {
	case "issued":
		st.Until, st.Span = g.RedeemBy.UnixMilli(), g.RedeemBy.Sub(g.IssuedAt).Milliseconds()
	case "redeemed":
		st.Until, st.Span = g.NotAfter.UnixMilli(), g.For.Milliseconds()
	}
	st.Alive = st.State == "pending" || st.State == "issued" || st.State == "redeemed"
	return st
}

// place is a domain in words.
func place(groups []groupView, d scope.Domain) string {
	for _, v := range groups {
		if v.ID == d.Root().ID() {
			if d.Kind() == "thread" {
				for _, t := range v.Threads {
					if t.ID == d.ID() {
						return v.Name + ", " + t.Title
					}
				}
			}
			return v.Name
		}
	}
	return d.String()
}

// Redeemed reports whether the code has been exchanged.
func (st story) Redeemed() bool { return !st.NotAfter.IsZero() }

// Delivered says how the code travelled, as far as it got.
func (st story) Delivered() string {
	tries := 0
	for _, s := range st.Steps {
		switch s.What {
		case "delivered":
			return fmt.Sprintf("signed webhook, taken at try %d", s.Count)
		case "undelivered":
			tries = s.Count
		}
	}
	switch {
	case st.Deliver == "push" && tries > 0:
		return fmt.Sprintf("signed webhook, %d tries so far", tries)
	case st.Deliver == "push" && st.Redeemed():
		return "signed webhook"
	case st.Deliver == "push":
		return "signed webhook, on its way"
	case st.Deliver == "poll" && st.Redeemed():
		return "fetched by the app"
	case st.Deliver == "poll":
		return "waits to be fetched"
	case st.Redeemed():
		return "in the link, through your browser"
	}
	return "in the link, in your browser"
}

// Arrived reports whether the app has the code.
func (st story) Arrived() bool {
	return st.Redeemed() || slices.ContainsFunc(st.Steps, func(s step) bool { return s.What == "delivered" })
}

// Done are the uses, as steps.
func (st story) Done() []step { return st.steps("used") }

// Refusals are what the app was told no to.
func (st story) Refusals() []step { return st.steps("refused") }

func (st story) steps(what string) []step {
	var out []step
	for _, s := range st.Steps {
		if s.What == what {
			out = append(out, s)
		}
	}
	return out
}

// Pips are the uses as dots: true for those that are left. More than twelve are a number.
func (st story) Pips() []bool {
	if st.Uses < 1 || st.Uses > 12 {
		return nil
	}
	out := make([]bool, st.Uses)
	for i := range out {
		out[i] = i < st.Left
	}
	return out
}

// grants lists the account's grants for programs; the page has them in its panel.
func (s *site) grants(w http.ResponseWriter, r *http.Request, account string) error {
	list, err := s.latest(r.Context(), account)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"grants": list})
	return nil
}

// events is the page's stream (server-sent events): "message", "story" and "operation", the first two with HTML from
// the same templates as the page. It begins behind the revision that the page was made at, or that the browser saw
// last.
func (s *site) events(w http.ResponseWriter, r *http.Request, account string) error {
	since := r.URL.Query().Get("since")
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		since = id
	}
	rev, err := strconv.ParseInt(since, 10, 64)
	if err != nil && since != "" {
		return problem(http.StatusBadRequest, "since is a number")
	}
	st, err := s.panel.subscribe(account)
	if err != nil {
		return err
	}
	defer s.panel.unsubscribe(st)
	ctx, cancel := s.stoppable(r.Context())
	defer cancel()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := &eventWriter{w: w, control: http.NewResponseController(w)}
	out.send("hello", "", map[string]any{"now": s.now().UnixMilli()})
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	sent := map[string]string{} // stories, as they were last
	lastOp, quiet := "", time.Duration(0)
	for out.err == nil {
		if _, err := s.account(r); err != nil {
			return nil // signed out meanwhile
		}
		// A browser that does not read is let go.
		_ = out.control.SetWriteDeadline(time.Now().Add(heartbeat))
		before := out.count
		if rev, err = s.sendMessages(ctx, out, account, rev); err == nil {
			err = s.sendStories(ctx, out, account, sent)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("panel", "err", err)
			}
			return nil
		}
		if _, op := s.panel.seen(account); op != lastOp {
			lastOp = op
			out.send("operation", "", map[string]string{"text": op})
		}
		if quiet += lookAgain; out.count > before {
			quiet = 0
		} else if quiet >= heartbeat {
			quiet = 0
			out.comment()
		}
		out.flush()
		select {
		case <-ctx.Done():
			return nil
		case <-st.wake:
		case <-tick.C:
		}
	}
	return nil
}

func (s *site) sendMessages(ctx context.Context, out *eventWriter, account string, rev int64) (int64, error) {
	changed, now, err := s.chat.since(ctx, account, rev)
	if err != nil {
		return rev, err
	}
	for _, m := range changed {
		out.send("message", strconv.FormatInt(m.rev, 10), map[string]string{"id": m.ID, "group": m.group, "thread": m.Thread, "account": m.Account, "html": s.html("message", s.view(m, account))})
	}
	return now, nil
}

func (s *site) sendStories(ctx context.Context, out *eventWriter, account string, sent map[string]string) error {
	list, err := s.stories(ctx, account)
	if err != nil {
		return err
	}
	for _, st := range slices.Backward(list) { // the oldest first: the page puts each on top
		html := s.html("story", st)
		if sent[st.ID] != html {
			sent[st.ID] = html
			out.send("story", "", map[string]any{"id": st.ID, "state": st.State, "app": st.AppName, "left": st.Left, "html": html})
		}
	}
	return nil
}

func (s *site) html(name string, data any) string {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
		s.log.Error("template", "name", name, "err", err)
		return ""
	}
	return b.String()
}

// An eventWriter remembers the first error, after which it writes nothing.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	count   int
	err     error
}

func (e *eventWriter) send(event, id string, v any) {
	data, err := json.Marshal(v) // one line: JSON escapes line ends
	if err != nil {
		e.err = err
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	e.write(fmt.Sprintf("%sevent: %s\ndata: %s\n\n", id, event, data))
	e.count++
}

func (e *eventWriter) comment() { e.write(":\n\n") }

func (e *eventWriter) write(text string) {
	if e.err == nil {
		_, e.err = e.w.Write([]byte(text))
	}
}

func (e *eventWriter) flush() {
	if e.err == nil {
		e.err = e.control.Flush()
	}
}

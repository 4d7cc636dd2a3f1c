package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Bounds on what people and apps can make this process keep.
const (
	maxText     = 4000 // characters
	maxMessages = 1000 // a group; older ones are not shown, and soon forgotten
	maxThreads  = 50   // a group
	maxName     = 64   // bytes of a thread's id
	maxEmoji    = 32   // bytes
	maxEmojis   = 20   // different ones on a message
	maxActions  = 4    // on a card
)

// A user signs in without a password: this is a demo, on the loopback address only.
type user struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Hue  int    `json:"-"`
}

// Initials stand in the user's picture.
func (u user) Initials() string {
	var out []rune
	for word := range strings.FieldsSeq(u.Name) {
		r, _ := utf8.DecodeRuneInString(word)
		out = append(out, unicode.ToUpper(r))
	}
	return string(out[:min(2, len(out))])
}

type thread struct {
	ID    string `json:"id"`
	Title string `json:"title"`
}

// A message as it is listed.
type message struct {
	ID        string     `json:"id"`
	Account   string     `json:"account"`
	Via       string     `json:"via,omitempty"` // the app that posted it in the account's name
	Text      string     `json:"text"`
	Thread    string     `json:"thread,omitempty"`
	At        time.Time  `json:"at"`
	Card      *card      `json:"card,omitempty"`
	Reactions []reaction `json:"reactions,omitempty"`

	group string
	rev   int64 // of its last change
}

// domain is where the message really is: what an app asks about it is judged there.
func (m *message) domain() scope.Domain { return domainOf(m.group, m.Thread) }

type reaction struct {
	Emoji    string   `json:"emoji"`
	Accounts []string `json:"accounts"`
}

// A card is what only apps can post: a message with things to press.
type card struct {
	Title   string   `json:"title"`
	Text    string   `json:"text,omitempty"`
	Actions []action `json:"actions,omitempty"`
}

// An action of a card is a button, whose press the app is told of, or a link to the app.
type action struct {
	Label  string `json:"label"`
	Button string `json:"button,omitempty"`
	Value  string `json:"value,omitempty"` // goes with the press
	Link   string `json:"link,omitempty"`
}

// A draft is what somebody wants to post.
type draft struct {
	Text   string `json:"text"`
	Thread string `json:"thread"`
	Card   *card  `json:"card"`
}

func (d *draft) check() error {
	if strings.TrimSpace(d.Text) == "" {
		return problem(http.StatusUnprocessableEntity, "the text is empty")
	}
	if err := checkText("the text", d.Text, maxText); err != nil {
		return err
	}
	if d.Thread != "" && !validName(d.Thread) {
		return problem(http.StatusUnprocessableEntity, "a thread is 1 to 64 of A-Z a-z 0-9 . _ -")
	}
	if d.Card != nil {
		return d.Card.check()
	}
	return nil
}

func (c *card) check() error {
	if c.Title == "" || len(c.Actions) > maxActions {
		return problem(http.StatusUnprocessableEntity, "a card has a title and at most 4 actions")
	}
	for _, t := range []struct{ what, text string }{{"the card's title", c.Title}, {"the card's text", c.Text}} {
		if err := checkText(t.what, t.text, 500); err != nil {
			return err
		}
	}
	for _, a := range c.Actions {
		if a.Label == "" || (a.Button == "") == (a.Link == "") {
			return problem(http.StatusUnprocessableEntity, "an action has a label, and a button or a link")
		}
		for _, t := range []struct{ what, text string }{{"the label", a.Label}, {"the button", a.Button}, {"the value", a.Value}} {
			if err := checkText(t.what, t.text, 100); err != nil {
				return err
			}
		}
		if a.Link != "" && !webLink(a.Link) {
			return problem(http.StatusUnprocessableEntity, "a link is an http or https URL of at most 2000 bytes")
		}
	}
	return nil
}

// webLink keeps "javascript:" and its like out of pages and redirects.
func webLink(text string) bool {
	u, err := url.Parse(text)
	return err == nil && len(text) <= 2000 && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil
}

func checkText(what, text string, limit int) error {
	if utf8.RuneCountInString(text) > limit {
		return problem(http.StatusUnprocessableEntity, "%s is longer than %d characters", what, limit)
	}
	for _, r := range text {
		if r != '\n' && r != '\t' && r != '\r' && unicode.IsControl(r) {
			return problem(http.StatusUnprocessableEntity, "%s has control characters", what)
		}
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// domainOf names a group, or a thread in it. Both ids are checked before: they always make a domain.
func domainOf(group, thread string) scope.Domain {
	d, err := scope.Domain{}.Child("group", group)
	if err == nil && thread != "" {
		d, err = d.Child("thread", thread)
	}
	if err != nil {
		return scope.Domain{} // allows nothing, and is in nothing
	}
	return d
}

// A group is what the demo begins with. What has changed since is in rows.
type group struct {
	id, name, about, owner string
	members                []string
	threads                []thread
}

// chat is the social server's own data: everything an ordinary one would keep in its database. Many processes may keep
// it in the same one; nothing of it is in this process alone.
type chat struct {
	now    func() time.Time
	rows   rows
	users  []user
	groups []group
}

func newChat(now func() time.Time, in rows) *chat {
	return &chat{now: now, rows: in,
		users: []user{{"zhang-san", "Zhang San", 0}, {"li-si", "Li Si", 1}, {"wang-wu", "Wang Wu", 2}, {"zhao-liu", "Zhao Liu", 3}},
		groups: []group{
			{"42", "Reading circle", "One book a month, tea every week", "zhang-san",
				[]string{"zhang-san", "li-si", "wang-wu", "zhao-liu"}, []thread{{"t1", "Books for the winter"}, {"t2", "Where we meet"}}},
			{"7", "Allotment", "Beds, seeds and the water rota", "li-si",
				[]string{"zhang-san", "li-si", "zhao-liu"}, []thread{{"t1", "Water rota"}}},
		},
	}
}

// The places of rows. Each but the last is followed by the id of a group.
const (
	inMessages = "messages/" // by id
	inMembers  = "members/"  // by account
	inThreads  = "threads/"  // by id
	inSettings = "settings"
)

// seed gives the groups a past, so that the page does not begin empty: once. Nobody's operation, so nothing is emitted.
func (c *chat) seed(ctx context.Context) error {
	return c.rows.together(ctx, func(ctx context.Context, _ store.Store) error {
		first, err := c.rows.put(ctx, inSettings, row{name: "seeded", value: []byte("true")})
		if err != nil || !first {
			return err
		}
		now := c.now()
		for _, s := range []struct {
			ago                           time.Duration
			group, thread, account, words string
		}{
			{52 * time.Minute, "42", "", "li-si", "I finished the last one on the train. Who has the next?"},
			{49 * time.Minute, "42", "", "wang-wu", "Not yet decided. Something with weather in it, please."},
			{44 * time.Minute, "42", "t1", "zhao-liu", "Long evenings ahead. Thick books welcome here."},
			{31 * time.Minute, "42", "t2", "wang-wu", "The back room is ours on Thursdays."},
			{18 * time.Minute, "42", "", "zhao-liu", "A storm, then. And tea."},
			{26 * time.Minute, "7", "", "li-si", "Broad beans are in. Zhao Liu, the hose leaks again."},
			{9 * time.Minute, "7", "t1", "zhao-liu", "I take Tuesday and Saturday."},
		} {
			if _, err := c.save(ctx, s.group, message{Account: s.account, Text: s.words, Thread: s.thread, At: now.Add(-s.ago)}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *chat) user(id string) (user, bool) {
	i := slices.IndexFunc(c.users, func(u user) bool { return u.ID == id })
	if i < 0 {
		return user{}, false
	}
	return c.users[i], true
}

func (c *chat) group(id string) (*group, bool) {
	i := slices.IndexFunc(c.groups, func(g group) bool { return g.id == id })
	if i < 0 {
		return nil, false
	}
	return &c.groups[i], true
}

// newID names a message or another operation. No name is given twice, in any process, whatever was restarted: behest
// would take a second event of the same ID for the first (P2).
func (c *chat) newID(ctx context.Context, prefix string) (string, error) {
	n, err := c.rows.serial(ctx)
	return fmt.Sprintf("%s%d", prefix, n), err
}

var (
	errNoGroup   = problem(http.StatusNotFound, "no such group")
	errNoMessage = problem(http.StatusNotFound, "no such message")
	errNoMember  = problem(http.StatusForbidden, "you are not a member of this group")
	errMuted     = problem(http.StatusForbidden, "you are muted in this group")
)

// A membership outlasts leaving, since muting does.
type membership struct {
	In    bool `json:"in"`
	Muted bool `json:"muted,omitempty"`
}

func (g *group) first(account string) membership {
	return membership{In: slices.Contains(g.members, account)}
}

// member finds a group for one of its members.
func (c *chat) member(ctx context.Context, groupID, account string) (*group, membership, error) {
	g, ok := c.group(groupID)
	if !ok {
		return nil, membership{}, errNoGroup
	}
	m := g.first(account)
	if err := load(ctx, c.rows, inMembers+g.id, account, &m); err != nil {
		return nil, m, err
	}
	if !m.In {
		return nil, m, errNoMember
	}
	return g, m, nil
}

// writer finds a group for a member who may write in it.
func (c *chat) writer(ctx context.Context, groupID, account string) (*group, error) {
	g, m, err := c.member(ctx, groupID, account)
	if err == nil && m.Muted {
		err = errMuted
	}
	return g, err
}

// may is what Permit asks: may the account itself do this here, now?
func (c *chat) may(ctx context.Context, account, action string, where scope.Domain) error {
	if where.Root().Kind() != "group" {
		return errNoGroup
	}
	_, m, err := c.member(ctx, where.Root().ID(), account)
	if err == nil && m.Muted && strings.HasSuffix(action, ".write") {
		err = errMuted
	}
	return err
}

// post saves a message of the account, or of an app in its name.
func (c *chat) post(ctx context.Context, account, via, groupID string, d draft) (message, error) {
	if err := d.check(); err != nil {
		return message{}, err
	}
	g, err := c.writer(ctx, groupID, account)
	if err == nil {
		err = c.open(ctx, g, d.Thread)
	}
	if err != nil {
		return message{}, err
	}
	return c.save(ctx, g.id, message{Account: account, Via: via, Text: d.Text, Thread: d.Thread, Card: d.Card, At: c.now()})
}

func (c *chat) save(ctx context.Context, groupID string, m message) (_ message, err error) {
	n, err := c.rows.serial(ctx)
	if err != nil {
		return m, err
	}
	m.ID, m.At, m.group = fmt.Sprintf("m%d", n), m.At.UTC().Truncate(time.Millisecond), groupID
	value, err := json.Marshal(m)
	if err != nil {
		return m, err
	}
	if n%100 == 0 {
		err = c.forget(ctx, groupID)
	}
	if err == nil {
		_, err = c.rows.put(ctx, inMessages+groupID, row{name: m.ID, value: value}) // nobody else has this id
	}
	return m, err
}

// forget removes what list does not show any more.
func (c *chat) forget(ctx context.Context, groupID string) error {
	found, err := c.rows.list(ctx, inMessages+groupID, 0)
	if err != nil || len(found) <= maxMessages {
		return err
	}
	names := make([]string, len(found))
	for i, r := range found {
		names[i] = r.name
	}
	slices.SortFunc(names, byNumber)
	return c.rows.remove(ctx, inMessages+groupID, names[:len(names)-maxMessages]...)
}

// byNumber orders ids of messages: "m9" is before "m10".
func byNumber(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }

// threads are those that the group began with, and then the others.
func (c *chat) threads(ctx context.Context, g *group) ([]thread, error) {
	found, err := c.rows.list(ctx, inThreads+g.id, 0)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(g.threads)
	for _, r := range found {
		var t thread
		if err := r.decode(inThreads+g.id, &t); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// open makes a thread with its first message.
func (c *chat) open(ctx context.Context, g *group, id string) error {
	if id == "" {
		return nil
	}
	all, err := c.threads(ctx, g)
	if err != nil || slices.ContainsFunc(all, func(t thread) bool { return t.ID == id }) {
		return err
	}
	if len(all) >= maxThreads {
		return problem(http.StatusConflict, "the group has %d threads, which is all it can have", maxThreads)
	}
	value, err := json.Marshal(thread{id, strings.ReplaceAll(id, "-", " ")})
	if err != nil {
		return err
	}
	_, err = c.rows.put(ctx, inThreads+g.id, row{name: id, value: value}) // or somebody else was faster: the same
	return err
}

func (c *chat) message(groupID string, r row) (m message, err error) {
	err = r.decode(inMessages+groupID, &m)
	m.group, m.rev = groupID, r.rev
	return m, err
}

func (c *chat) messages(ctx context.Context, groupID string, after int64) ([]message, error) {
	found, err := c.rows.list(ctx, inMessages+groupID, after)
	if err != nil {
		return nil, err
	}
	out := make([]message, len(found))
	for i, r := range found {
		if out[i], err = c.message(groupID, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// list returns a group's messages, or one thread's, to a member; oldest first.
func (c *chat) list(ctx context.Context, account, groupID, threadID string) ([]message, error) {
	g, _, err := c.member(ctx, groupID, account)
	if err != nil {
		return nil, err
	}
	all, err := c.messages(ctx, g.id, 0)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b message) int { return byNumber(a.ID, b.ID) })
	out := []message{}
	for _, m := range all[max(0, len(all)-maxMessages):] {
		if threadID == "" || m.Thread == threadID {
			out = append(out, m)
		}
	}
	return out, nil
}

// since returns what changed after a revision in the account's groups, and the revision that this is up to. What
// changes meanwhile may be in it, and is again next time.
func (c *chat) since(ctx context.Context, account string, after int64) ([]message, int64, error) {
	now, err := c.rows.rev(ctx)
	if err != nil || now <= after {
		return nil, now, err
	}
	var out []message
	for _, g := range c.groups {
		switch _, _, err := c.member(ctx, g.id, account); {
		case err == errNoMember:
			continue
		case err != nil:
			return nil, after, err
		}
		changed, err := c.messages(ctx, g.id, after)
		if err != nil {
			return nil, after, err
		}
		out = append(out, changed...)
	}
	slices.SortFunc(out, func(a, b message) int { return cmp.Compare(a.rev, b.rev) })
	return out, now, nil
}

func (c *chat) find(ctx context.Context, account, groupID, id string) (message, error) {
	g, _, err := c.member(ctx, groupID, account)
	if err != nil {
		return message{}, err
	}
	return c.lookUp(ctx, g.id, id)
}

// lookUp finds a message, whoever asks: where it really is, for one.
func (c *chat) lookUp(ctx context.Context, groupID, id string) (message, error) {
	if !validName(id) { // PostgreSQL fails where it is asked for what cannot be text
		return message{}, errNoMessage
	}
	r, err := c.rows.get(ctx, inMessages+groupID, id)
	if err != nil {
		return message{}, err
	}
	if r.rev == 0 {
		return message{}, errNoMessage
	}
	return c.message(groupID, r)
}

// react also says whether the reaction is new: to react again is no operation.
func (c *chat) react(ctx context.Context, account, groupID, id, emoji string) (m message, added bool, err error) {
	if err := checkEmoji(emoji); err != nil {
		return message{}, false, err
	}
	g, err := c.writer(ctx, groupID, account)
	if err == nil {
		_, err = c.lookUp(ctx, g.id, id)
	}
	if err != nil {
		return message{}, false, err
	}
	m, err = change(ctx, c.rows, inMessages+g.id, id, message{}, func(m *message) (bool, error) {
		if m.ID == "" { // forgotten meanwhile
			return false, errNoMessage
		}
		var err error
		added, err = m.react(account, emoji)
		return added, err
	})
	m.group = g.id
	return m, added && err == nil, err
}

func checkEmoji(emoji string) error {
	if emoji == "" || len(emoji) > maxEmoji || strings.ContainsFunc(emoji, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return problem(http.StatusUnprocessableEntity, "an emoji has 1 to %d bytes and no spaces", maxEmoji)
	}
	return nil
}

func (m *message) react(account, emoji string) (added bool, err error) {
	for i := range m.Reactions {
		if r := &m.Reactions[i]; r.Emoji == emoji {
			if slices.Contains(r.Accounts, account) {
				return false, nil
			}
			r.Accounts = append(r.Accounts, account)
			return true, nil
		}
	}
	if len(m.Reactions) >= maxEmojis {
		return false, problem(http.StatusConflict, "the message has %d different reactions, which is all it can have", maxEmojis)
	}
	m.Reactions = append(m.Reactions, reaction{emoji, []string{account}})
	return true, nil
}

type member struct {
	user
	Muted, Owner bool
}

// members are sorted by the order in which users are known.
func (c *chat) members(ctx context.Context, account, groupID string) ([]member, error) {
	g, _, err := c.member(ctx, groupID, account)
	if err != nil {
		return nil, err
	}
	return c.roster(ctx, g)
}

func (c *chat) roster(ctx context.Context, g *group) ([]member, error) {
	found, err := c.rows.list(ctx, inMembers+g.id, 0)
	if err != nil {
		return nil, err
	}
	var out []member
	for _, u := range c.users {
		m := g.first(u.ID)
		if i := slices.IndexFunc(found, func(r row) bool { return r.name == u.ID }); i >= 0 {
			if err := found[i].decode(inMembers+g.id, &m); err != nil {
				return nil, err
			}
		}
		if m.In {
			out = append(out, member{u, m.Muted, g.owner == u.ID})
		}
	}
	return out, nil
}

// join adds the account and reports whether it was new.
func (c *chat) join(ctx context.Context, account, groupID string) (joined bool, err error) {
	g, ok := c.group(groupID)
	if !ok {
		return false, errNoGroup
	}
	_, err = change(ctx, c.rows, inMembers+g.id, account, g.first(account), func(m *membership) (bool, error) {
		joined = !m.In
		m.In = true
		return joined, nil
	})
	return joined && err == nil, err
}

func (c *chat) leave(ctx context.Context, account, groupID string) error {
	g, _, err := c.member(ctx, groupID, account)
	if err != nil {
		return err
	}
	_, err = change(ctx, c.rows, inMembers+g.id, account, g.first(account), func(m *membership) (bool, error) {
		m.In = false
		return true, nil
	})
	return err
}

// mute is for the group's owner: a muted member reads, and says nothing, through apps neither.
func (c *chat) mute(ctx context.Context, account, groupID, other string, muted bool) error {
	g, _, err := c.member(ctx, groupID, account)
	if err == nil && g.owner != account {
		err = problem(http.StatusForbidden, "only the group's owner mutes")
	}
	if err == nil {
		err = errNoMember
		if _, ok := c.user(other); ok {
			_, _, err = c.member(ctx, groupID, other)
		}
		if err == errNoMember {
			err = problem(http.StatusNotFound, "no such member")
		}
	}
	if err != nil {
		return err
	}
	_, err = change(ctx, c.rows, inMembers+g.id, other, g.first(other), func(m *membership) (bool, error) {
		m.Muted = muted
		return true, nil
	})
	return err
}

// groupView is a group as a page or a file shows it.
type groupView struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	About   string   `json:"-"`
	Members []string `json:"members"`
	Threads []thread `json:"threads"`
	Member  bool     `json:"-"`
}

func (c *chat) views(ctx context.Context, account string) ([]groupView, error) {
	var out []groupView
	for i := range c.groups {
		g := &c.groups[i]
		v := groupView{ID: g.id, Name: g.name, About: g.about, Members: []string{}}
		members, err := c.roster(ctx, g)
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			v.Members = append(v.Members, m.ID)
			v.Member = v.Member || m.ID == account
		}
		if v.Threads, err = c.threads(ctx, g); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// mentions returns the ids of the apps that a text names, at most three, each once. "@BookBot," is bookbot;
// "mail@bookbot.example" and what is quoted with ">" name nobody. It is asked once, when the message is saved: never
// again, of whatever shows it.
func mentions(text string, apps map[string]string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimLeft(line, " "), ">") {
			continue
		}
		for at, r := range line {
			if r != '@' || at > 0 && wordByte(line[at-1]) {
				continue
			}
			end := at + 1
			for end < len(line) && wordByte(line[end]) {
				end++
			}
			name := strings.ToLower(line[at+1 : end])
			id, ok := apps[name]
			for !ok && name != strings.TrimRight(name, "._-") { // the full stop ends the sentence
				name = name[:len(name)-1]
				id, ok = apps[name]
			}
			if ok && !slices.Contains(out, id) {
				if out = append(out, id); len(out) == 3 {
					return out
				}
			}
		}
	}
	return out
}

func wordByte(b byte) bool {
	return b == '.' || b == '_' || b == '-' || '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

// command returns "/book" of "/book a table", and nothing of a text that is no command.
func command(text string) string {
	if !strings.HasPrefix(text, "/") {
		return ""
	}
	word, _, _ := strings.Cut(text, " ")
	word, _, _ = strings.Cut(word, "\n")
	if name := strings.TrimPrefix(word, "/"); !validName(name) {
		return ""
	}
	return word
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
)

func TestMentions(t *testing.T) {
	apps := map[string]string{"bookbot": "bookbot", "probe": "Probe", "a.b": "a.b", "one": "one", "two": "two", "three": "three"}
	for text, want := range map[string]string{
		"":                                 "",
		"@bookbot":                         "bookbot",
		"@bookbot hello":                   "bookbot",
		"hello @BookBot, please":           "bookbot",
		"hello @bookbot.":                  "bookbot",
		"@bookbot...":                      "bookbot",
		"(@bookbot)":                       "bookbot",
		"你好@bookbot帮我":                     "bookbot",
		"@PROBE":                           "Probe",
		"@a.b":                             "a.b",
		"@a.b.":                            "a.b",
		"@bookbots":                        "",
		"@book":                            "",
		"mail@bookbot":                     "",
		"mail@bookbot.example":             "",
		"@bookbot@probe":                   "bookbot",
		"@ bookbot":                        "",
		"bookbot":                          "",
		"@nobody":                          "",
		"@bookbot @bookbot":                "bookbot",
		"@bookbot @probe":                  "bookbot Probe",
		"@one @two @three @bookbot":        "one two three",
		"> @bookbot said so":               "",
		"> quoted\n@bookbot":               "bookbot",
		"  > @bookbot":                     "",
		"@bookbot\xff":                     "bookbot",
		strings.Repeat("@", 100) + "probe": "Probe",
	} {
		require.Equal(t, want, strings.Join(mentions(text, apps), " "), "%q", text)
	}
}

func TestCommand(t *testing.T) {
	for text, want := range map[string]string{
		"/tea": "/tea", "/tea 16:00": "/tea", "/tea\nnow": "/tea", "tea": "", "": "", "/": "", "/ tea": "", " /tea": "", "//tea": "", "/home/me": "",
	} {
		require.Equal(t, want, command(text), "%q", text)
	}
}

// Only what leaves a transaction as it was is a refusal.
func TestRefusals(t *testing.T) {
	trigger := func(err error) error { return fmt.Errorf("trigger t: %w", err) }
	denied, limited, invalid := fmt.Errorf("%w: no", grant.ErrDenied), fmt.Errorf("%w: too often", grant.ErrLimited), fmt.Errorf("%w: what", grant.ErrInvalid)
	broken := errors.New("the disk is tired")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{grant.ErrDenied, true}, {trigger(denied), true}, {errors.Join(trigger(denied), trigger(limited)), true},
		{errors.Join(errors.Join(trigger(invalid)), trigger(denied)), true},
		{fmt.Errorf("%w: %w", grant.ErrDenied, broken), true},
		{broken, false}, {trigger(broken), false}, {errors.Join(trigger(denied), trigger(broken)), false},
		{errors.Join(errors.Join(trigger(denied)), errors.Join(trigger(broken))), false},
		{grant.ErrUnknown, false},
	} {
		require.Equal(t, c.want, refusals(c.err), "%v", c.err)
	}
}

func TestParts(t *testing.T) {
	s := &site{mention: map[string]string{"bookbot": "bookbot"}, apps: &apps{}}
	for text, want := range map[string]string{
		"plain":                           "plain",
		"@bookbot hi":                     "[mention @bookbot] hi",
		"see https://a.example/x.":        "see [link https://a.example/x].",
		"mail@bookbot":                    "mail@bookbot",
		"@nobody":                         "@nobody",
		"javascript:alert(1)":             "javascript:alert(1)",
		"https://u:p@a.example/":          "https://u:p@a.example/",
		"<b>&":                            "<b>&",
		"a https://a.example @bookbot, b": "a [link https://a.example] [mention @bookbot], b",
	} {
		out := ""
		for _, p := range s.parts(&message{Text: text}) {
			if p.Kind == "" {
				out += p.Text
			} else {
				out += "[" + p.Kind + " " + p.Text + "]"
			}
		}
		require.Equal(t, want, strings.ReplaceAll(out, "[mention @bookbot],", "[mention @bookbot],"), "%q", text)
	}
}

func TestGroupsAreBounded(t *testing.T) {
	c := newChat(time.Now, newMemoryRows())
	for i := range maxMessages + 10 {
		_, err := c.post(t.Context(), "li-si", "", "42", draft{Text: fmt.Sprint(i)})
		require.NoError(t, err)
	}
	list, err := c.list(t.Context(), "li-si", "42", "")
	require.NoError(t, err)
	require.Len(t, list, maxMessages)
	require.Equal(t, fmt.Sprint(maxMessages+9), list[maxMessages-1].Text)
	for i := range maxThreads - 2 {
		_, err := c.post(t.Context(), "li-si", "", "42", draft{Text: "x", Thread: fmt.Sprint("new-", i)})
		require.NoError(t, err)
	}
	_, err = c.post(t.Context(), "li-si", "", "42", draft{Text: "x", Thread: "one-too-many"})
	require.ErrorContains(t, err, "threads")
	for i := range maxEmojis {
		for _, added := range []bool{true, false} { // to react again is no operation
			_, got, err := c.react(t.Context(), "li-si", "42", list[500].ID, fmt.Sprint("e", i))
			require.NoError(t, err)
			require.Equal(t, added, got)
		}
	}
	_, _, err = c.react(t.Context(), "li-si", "42", list[500].ID, "more")
	require.ErrorContains(t, err, "reactions")
}

// Each fault names the file, the line and the field.
func TestAppsFaults(t *testing.T) {
	const app = `{"id": "probe", "secret": "12345678", "actions": ["message.write"]}`
	with := func(trigger string) string { return "{\"apps\": [" + app + "],\n\"triggers\": [\n" + trigger + "]}" }
	for name, c := range map[string]struct{ text, want string }{
		"uses of 0":           {with(`{"app": "probe", "on": "mention", "in": "group:*", "allow": ["message.write"], "uses": 0}`), `:3: triggers[0].uses: trigger field "uses": 0 is no number of uses; leave it out for the default, or say -1 for no count`},
		"empty":               {``, `:1: the file ends too early`},
		"not JSON":            {"{\n\"apps\": [x]}", `:2: apps[0]: is not JSON`},
		"cut off":             {"{\"apps\": [\n", `:2: apps: the file ends too early`},
		"a list":              {`[]`, `:1: is not an object`},
		"more":                {"{\"apps\": []}\n{}", `:2: text after the end`},
		"no apps":             {`{}`, `:1: apps: is missing`},
		"unknown at the top":  {"{\"apps\": [],\n\"aps\": []}", `:2: aps: is not a field; known are apps, triggers, jwt_audience`},
		"stateless alone":     {"{\"apps\": [" + strings.Replace(app, `"probe"`, `"probe", "real_names": true`, 1) + "],\n\"triggers\": [{\"app\": \"probe\", \"on\": \"mention\", \"in\": \"*\", \"allow\": [\"message.write\"], \"uses\": -1, \"for\": \"1m\",\n\"stateless\": true}]}", `:3: triggers[0].stateless: there is no JWTAudience`},
		"audience":            {"{\"apps\": [" + app + "],\n\"jwt_audience\": \"files\"}", `:2: jwt_audience: "files" is not an https URL`},
		"apps twice":          {"{\"apps\": [],\n\"apps\": []}", `:2: apps: is there twice`},
		"apps no list":        {`{"apps": {}}`, `:1: apps: is not a list`},
		"app no object":       {"{\"apps\": [\n7]}", `:2: apps[0]: is not an object`},
		"unknown field":       {"{\"apps\": [" + app + ",\n{\"id\": \"x\",\n\"sekret\": \"12345678\"}]}", `:3: apps[1].sekret: is not a field`},
		"wrong type":          {"{\"apps\": [{\"id\":\n7}]}", `:2: apps[0].id: is not a text`},
		"wrong list":          {"{\"apps\": [{\"actions\":\n\"message.write\"}]}", `:2: apps[0].actions: is not a list of texts`},
		"wrong item":          {"{\"apps\": [{\"actions\": [\"a\",\n7]}]}", `:2: apps[0].actions[1]: is not a text`},
		"wrong yes":           {"{\"apps\": [{\"introspect\":\n\"true\"}]}", `:2: apps[0].introspect: is neither true nor false`},
		"field twice":         {"{\"apps\": [{\"id\": \"a\",\n\"id\": \"b\"}]}", `:2: apps[0].id: is there twice`},
		"bad id":              {"{\"apps\": [{\n\"id\": \"a b\", \"secret\": \"12345678\"}]}", `:2: apps[0].id: `},
		"no id":               {"{\"apps\": [\n{\"secret\": \"12345678\"}]}", `:2: apps[0].id: `},
		"no secret":           {"{\"apps\": [\n{\"id\": \"a\"}]}", `:2: apps[0].secret: `},
		"jwks is text":        {"{\"apps\": [{\"id\": \"a\",\n\"jwks\": \"x\"}]}", `:2: apps[0].jwks: `},
		"jwks of nothing":     {"{\"apps\": [{\"id\": \"a\",\n\"jwks\": {\"keys\": []}}]}", `:2: apps[0].jwks: `},
		"a bad hash":          {"{\"apps\": [{\"id\": \"a\",\n\"secret_hash\": \"$2a$10$x\"}]}", `:2: apps[0].secret_hash: `},
		"no such method":      {"{\"apps\": [{\"id\": \"a\", \"secret\": \"12345678\",\n\"token_endpoint_auth_method\": \"x\"}]}", `:2: apps[0].token_endpoint_auth_method: `},
		"short secret":        {"{\"apps\": [{\"id\": \"a\",\n\"secret\": \"short\"}]}", `:2: apps[0].secret: `},
		"unknown action":      {"{\"apps\": [{\"id\": \"a\", \"secret\": \"12345678\",\n\"actions\": [\"message.eat\"]}]}", `:2: apps[0].actions: `},
		"public http webhook": {"{\"apps\": [{\"id\": \"a\", \"secret\": \"12345678\",\n\"webhook\": \"http://bookbot.example/hook\"}]}", `:2: apps[0].webhook: `},
		"bad webhook secret":  {"{\"apps\": [{\"id\": \"a\", \"secret\": \"12345678\",\n\"webhook_secret\": \"whsec_x\"}]}", `:2: apps[0].webhook_secret: `},
		"bad redirect":        {"{\"apps\": [{\"id\": \"a\", \"secret\": \"12345678\",\n\"redirect_uris\": [\"http://public.example/\"]}]}", `:2: apps[0].redirect_uris: `},
		"same app":            {"{\"apps\": [" + app + ",\n" + app + "]}", `:2: apps[1].id: there is another app "probe" above`},
		"trigger no object":   {with(`7`), `:3: triggers[0]: is not an object`},
		"unknown in trigger":  {with("{\"app\": \"probe\",\n\"when\": \"mention\"}"), `:4: triggers[0].when: `},
		"twice in trigger":    {with("{\"app\": \"probe\",\n\"app\": \"probe\"}"), `:4: triggers[0].app: is there twice`},
		"bad duration":        {with("{\"app\": \"probe\",\n\"for\": \"ten minutes\"}"), `:4: triggers[0].for: `},
		"number for duration": {with("{\"app\": \"probe\",\n\"for\": 600}"), `:4: triggers[0].for: `},
		"unknown in match":    {with("{\"app\": \"probe\",\n\"match\": {\"words\": []}}"), `:4: triggers[0].match: `},
		"no such app":         {with("{\"app\":\n\"nobody\", \"on\": \"mention\", \"in\": \"group:*\", \"allow\": [\"message.write\"]}"), `:4: triggers[0].app: `},
		"bad pattern":         {with("{\"app\": \"probe\", \"on\": \"mention\",\n\"in\": \"group 42\", \"allow\": [\"message.write\"]}"), `:4: triggers[0].in: `},
		"beyond the app":      {with("{\"app\": \"probe\", \"on\": \"mention\", \"in\": \"group:*\",\n\"allow\": [\"member.read\"]}"), `:4: triggers[0].allow: `},
		"nothing allowed":     {with("{\"app\": \"probe\", \"on\": \"mention\", \"in\": \"group:*\"}"), `:3: triggers[0].allow: `},
		"too long":            {with("{\"app\": \"probe\", \"on\": \"mention\", \"in\": \"group:*\", \"allow\": [\"message.write\"],\n\"for\": \"9000h\"}"), `:4: triggers[0].for: `},
		"no webhook to push":  {with("{\"app\": \"probe\", \"on\": \"mention\", \"in\": \"group:*\", \"allow\": [\"message.write\"],\n\"deliver\": \"push\"}"), `:4: triggers[0].deliver: `},
		"no redirect URI":     {with("{\"app\": \"probe\", \"on\": \"link.open\", \"in\": \"group:*\", \"allow\": [\"message.write\"]}"), `:3: triggers[0].deliver: `},
		"bad link prefix":     {with("{\"app\": \"probe\", \"on\": \"link.open\", \"in\": \"group:*\", \"allow\": [\"message.write\"], \"deliver\": \"poll\",\n\"match\": {\n\"link_prefix\": \"https://a.example\"}}"), `:5: triggers[0].match.link_prefix: `},
		"same trigger":        {with("{\"id\": \"t\", \"app\": \"probe\", \"on\": \"mention\", \"in\": \"group:*\", \"allow\": [\"message.write\"]},\n{\"id\": \"t\", \"app\": \"probe\", \"on\": \"command\", \"in\": \"group:*\", \"allow\": [\"message.write\"]}"), `:4: triggers[1].id: there is another trigger "t" above`},
		"deep":                {strings.Repeat(`{"a":`, 50), `:1: a.a`},
		"not UTF-8":           {"{\"apps\": [{\"id\": \"\xff\"}]}", `:1: apps[0].id`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseApps("apps.json", []byte(c.text))
			require.Error(t, err)
			require.True(t, strings.HasPrefix(err.Error(), "apps.json"+c.want) || strings.Contains(err.Error(), "\napps.json"+c.want), "%v", err)
			require.NotContains(t, err.Error(), "12345678", "no secrets")
		})
	}
	t.Run("all at once", func(t *testing.T) {
		_, err := parseApps("apps.json", []byte("{\"apps\": [{\"id\": \"a\", \"secret\": \"x\",\n\"actions\": [\"no\"]},\n{\"id\": \"\", \"secret\": \"12345678\"}]}"))
		require.Len(t, strings.Split(err.Error(), "\n"), 3, "%v", err)
	})
	t.Run("webhooks on this machine", func(t *testing.T) {
		for _, host := range []string{"127.0.0.1:9000", "localhost:9000", "[::1]:9000", "127.0.0.1"} {
			_, err := parseApps("apps.json", []byte(`{"apps": [{"id": "a", "secret": "12345678", "webhook": "http://`+host+`/hook"}]}`))
			require.NoError(t, err, host)
		}
	})
	t.Run("too large", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "apps.json")
		require.NoError(t, os.WriteFile(path, []byte(strings.Repeat(" ", maxFile+1)), 0o600))
		_, err := readApps(path)
		require.ErrorContains(t, err, path+":1: ")
	})
	a, err := readApps(pinned)
	require.NoError(t, err)
	require.Len(t, a.list, 2)
	require.Len(t, a.triggers, 1)
	require.Equal(t, 10*time.Minute, a.triggers[0].For)
}

func FuzzApps(f *testing.F) {
	text, err := os.ReadFile(pinned)
	require.NoError(f, err)
	f.Add(text)
	f.Add([]byte(`{"apps":[{"id":"a","secret":"12345678"}],"triggers":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := parseApps("f", text); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "f:") {
					t.Fatalf("a fault without a place: %q of %v", line, err)
				}
			}
		}
	})
}

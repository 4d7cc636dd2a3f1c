package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const story = `Before:
  Zhang San signs in at BookBot: done
  A stranger refreshes his token: done
  BookBot redeems a code for an operation: unsupported_grant_type
After:
  Zhang San signs in at BookBot: done
  A stranger refreshes his token: invalid_client
  BookBot refreshes it: done
  Zhang San writes in group 42: @bookbot reserve Dune
  BookBot redeems the code for this operation: done
  It reads his profile with the token for it: invalid_token
  It writes in group 42: zhang-san through bookbot group:42/message.write
  It writes there once more: used_up
`

func TestStory(t *testing.T) {
	var out bytes.Buffer
	for _, migrated := range []bool{false, true} {
		require.NoError(t, run(&out, migrated))
	}
	require.Equal(t, strings.Split(story, "\n"), strings.Split(out.String(), "\n"))
}

// What does not come out as told is an error.
func TestStoryThatFails(t *testing.T) {
	c := &client{out: &bytes.Buffer{}}
	c.step("a step", answer{Error: "invalid_grant"}, "done")
	require.EqualError(t, c.failed, "a step: invalid_grant, want done")
}

func TestShort(t *testing.T) {
	text, err := os.ReadFile("main.go")
	require.NoError(t, err)
	require.Less(t, bytes.Count(text, []byte("\n")), 100)
}

package cli

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// The scripts ask the binary itself for the words that fit (--generate-bash-completion), so they never grow old.
const (
	bashCompletion = `_weft() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words
  if [[ "$cur" == -* ]]; then
    words=$("${COMP_WORDS[@]:0:$COMP_CWORD}" "$cur" --generate-bash-completion 2>/dev/null)
  else
    words=$("${COMP_WORDS[@]:0:$COMP_CWORD}" --generate-bash-completion 2>/dev/null)
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o bashdefault -o default -F _weft weft
`
	zshCompletion = `#compdef weft
_weft() {
  local -a words_list
  words_list=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[1,$((CURRENT-1))]} --generate-bash-completion 2>/dev/null)}")
  _describe 'weft' words_list
}
compdef _weft weft
`
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the shell's completion script: bash, zsh or fish",
		ArgsUsage: "SHELL",
		Description: "bash:  source <(weft completion bash)\n" +
			"zsh:   weft completion zsh > \"${fpath[1]}/_weft\"\n" +
			"fish:  weft completion fish > ~/.config/fish/completions/weft.fish",
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			var text string
			switch shell := c.Args().First(); shell {
			case "bash":
				text = bashCompletion
			case "zsh":
				text = zshCompletion
			case "fish":
				var err error
				if text, err = c.App.ToFishCompletion(); err != nil {
					return err
				}
			default:
				return cli.Exit(fmt.Sprintf("shell %q: must be bash, zsh or fish", shell), 2)
			}
			_, err := fmt.Fprint(c.App.Writer, text)
			return err
		},
	}
}

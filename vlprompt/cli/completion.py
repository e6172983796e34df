"""Print a script that gives bash, zsh or fish TAB completion of commands, keys, methods and datasets."""

from __future__ import annotations

from collections.abc import Sequence

from vlprompt.cli._shared import check_keys, command, parse
from vlprompt.errors import VlpromptError, nearest

USAGE = """vlprompt completion bash|zsh|fish

  bash   eval "$(vlprompt completion bash)"       in ~/.bashrc
  zsh    eval "$(vlprompt completion zsh)"        in ~/.zshrc, behind compinit
  fish   vlprompt completion fish | source        in ~/.config/fish/config.fish

TAB then completes commands, the keys of the command and of the method on the line, and the names of methods, datasets,
protocols, backbones, recipes and other values; otherwise files. The completions come from `vlprompt` itself, within
hundredths of a second. Names added by plugins are not included."""
# each runs `vlprompt completion words WORD…`, and lets the shell complete files if that prints nothing
SCRIPTS = {
    "bash": r"""_vlprompt() {
    local line=${COMP_LINE:0:COMP_POINT} breaks=${COMP_WORDBREAKS//[^=:]/} words word tail found
    read -r -a words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]} - 1]}
    tail=$word
    [[ $breaks ]] && tail=${word##*[$breaks]}  # of the word, readline replaces what stands behind its last break
    COMPREPLY=()
    while IFS= read -r found; do
        [[ $found ]] && COMPREPLY+=("${found#"${word%"$tail"}"}")
    done < <("${COMP_WORDS[0]}" completion words "${words[@]:1}" 2> /dev/null)
    if [[ ${COMPREPLY[0]} == *= || $tail == *[[]* ]]; then compopt -o nospace 2> /dev/null; fi
}
complete -o default -F _vlprompt vlprompt
""",
    "zsh": r"""#compdef vlprompt
_vlprompt() {
    local -a found
    found=("${(@f)$("${words[1]}" completion words "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then
        compset -P '*='
        _files
    elif [[ ${found[1]} == *= || $PREFIX == *\[* ]]; then
        compadd -S '' -- "${found[@]}"
    else
        compadd -- "${found[@]}"
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _vlprompt "$@"
else
    compdef _vlprompt vlprompt
fi
""",
    "fish": r"""function __vlprompt_words
    set -l words (commandline -opc)
    set -g __vlprompt_found (command $words[1] completion words $words[2..-1] (commandline -ct) 2> /dev/null)
    test -n "$__vlprompt_found"
end
complete -c vlprompt -n __vlprompt_words -f -a '$__vlprompt_found'
""",
}


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print the script of a shell."""
    arguments = parse(argv, words=1)
    check_keys(arguments.settings, ())
    if not arguments.words:
        raise VlpromptError(f"say which shell: {', '.join(SCRIPTS)}")
    shell = arguments.words[0]
    if shell not in SCRIPTS:
        raise VlpromptError(f"unknown shell '{shell}': {nearest(shell, SCRIPTS)}")
    print(SCRIPTS[shell], end="")
    return 0

# The Homebrew formula: `make release` writes it to dist/ with the release's values (formula.py).
class Decant < Formula
  desc "Pours a LoRA fine-tune into one GGUF that a laptop runs"
  homepage "@HOMEPAGE@"
  url "@URL@"
  version "@VERSION@"
  sha256 "@SHA256@"
  license "MIT"

  depends_on "cmake"
  depends_on "ninja"
  depends_on "python@3.13"

  def install
    python = Formula["python@3.13"].opt_bin/"python3.13"
    system python, "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", "-c", "constraints.txt", "."
    bin.install_symlink libexec/"bin/decant"
    generate_completions_from_executable(bin/"decant", "completion")
  end

  def caveats
    <<~TEXT
      Build llama.cpp once, in 5 to 10 minutes:
        decant setup
      To export adapters, add torch, transformers and peft:
        #{opt_libexec}/bin/python -m pip install 'decant-llm[export]==#{version}'
    TEXT
  end

  test do
    assert_match "version #{version}", shell_output("#{bin}/decant --version")
  end
end
